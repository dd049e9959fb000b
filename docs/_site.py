"""The pages of the documentation site that are made of other things: the README, the code, the recipes, `--help`."""

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import equilibria
from equilibria.cli.app import app
from equilibria.configuration import shipped_recipes

ROOT = Path(__file__).parents[1]
COPIED = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages."""
    for name, text in pages():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Pages in docs/ link to those of the root as they stand in the repository."""
    return re.sub(r"\]\(\.\./(\w+\.md)", lambda match: f"]({COPIED[match.group(1)]}", markdown)


def pages() -> Iterator[tuple[str, str]]:
    """Paths and texts of the generated pages."""
    for source, name in COPIED.items():
        yield name, _links_from_docs((ROOT / source).read_text(encoding="utf-8"))
    yield "commands.md", commands()
    yield "recipes.md", recipes()
    yield "reference/index.md", overview()
    for package in equilibria._PACKAGES:
        yield f"reference/{package}.md", reference(package)


def _links_from_docs(text: str) -> str:
    """A page of the root, moved to docs/; what is not part of the site is named and not linked."""

    def moved(match: re.Match[str]) -> str:
        shown, target = match.groups()
        path, mark, anchor = target.partition("#")
        if path in COPIED:
            return f"[{shown}]({COPIED[path]}{mark}{anchor})"
        if path.startswith("docs/") and (ROOT / path).is_file():
            return f"[{shown}]({path.removeprefix('docs/')}{mark}{anchor})"
        return match.group() if re.match(r"\w+:|#|$", target) else shown

    return re.sub(r"\[([^\]]*)\]\(([^)\s]*)\)", moved, text)


def commands() -> str:
    """The command line, from what `--help` is made of."""
    text = app.generate_docs(output_format="markdown", heading_level=1)
    # A command's usage names the command itself, which the generator puts before it once more.
    text = re.sub(r"^(equilibria (?:\w[\w-]* )*?)(\w[\w-]*) \2 ", r"\1\2 ", text, flags=re.MULTILINE)
    text = text.replace("# equilibria\n", "# Command line\n", 1).replace("```console", "```text")
    return re.sub(r"^## Table of Contents\n.*?(?=^\*\*Commands)", "", text, flags=re.DOTALL | re.MULTILINE)


def recipes() -> str:
    """Every recipe with what its comment says of it."""
    parts = [
        "# Recipes\n\nA recipe is a TOML file. Train one by its name,\n"
        "`equilibria train english-4m/default --run.name first`; copy it to change it,\n"
        "`equilibria init english-4m/default mine.toml`; ask for its cost before,\n"
        "`equilibria plan english-4m/default`. `equilibria train NAME --dry-run` prints all of its keys.\n"
    ]
    folder = None
    for name, recipe in sorted(shipped_recipes().items(), key=lambda item: ("/" in item[0], item[0])):
        if (parent := name.rpartition("/")[0] or "Small ones") != folder:
            folder = parent
            parts.append(f"## {folder}\n")
        comment = re.match(r"(?:#.*\n)+", recipe.file.read_text(encoding="utf-8"))
        assert comment is not None
        lines = [line.removeprefix("#").strip() for line in comment.group().splitlines()]
        parts.append(f"### {name}\n\n**{lines[0]}**\n\n" + "\n".join(lines[1:]).strip() + "\n")
    return "\n".join(parts)


def overview() -> str:
    """The packages, each with what it is and its public names."""
    rows = []
    for package in equilibria._PACKAGES:
        module = import_module(f"equilibria.{package}")
        about = (module.__doc__ or "").split("\n\n")[0].replace("\n", " ")
        names = ", ".join(f"[`{name}`][equilibria.{package}.{name}]" for name in sorted(module.__all__, key=str.lower))
        rows.append(f"## [{package}]({package}.md)\n\n{about}\n\n{names}\n")
    return (
        "# Python\n\nEvery public name can be imported from `equilibria`, as in `import equilibria as eq; eq.DEQ`,\n"
        "and from its package. Packages stand in the order in which they build on each other.\n\n" + "\n".join(rows)
    )


def reference(package: str) -> str:
    """The public names of a package."""
    module = import_module(f"equilibria.{package}")
    entries = "\n\n".join(f"::: equilibria.{package}.{name}" for name in sorted(module.__all__, key=str.lower))
    return f"# {package}\n\n{module.__doc__}\n\n{entries}\n"
