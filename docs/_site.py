"""The pages of the documentation site that are made of other things: the README, the code, the recipes, `--help`."""

import os
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import equilibria
from equilibria.cli.app import app
from equilibria.configuration import read_recipe, shipped_recipes

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import notebooks

ROOT = Path(__file__).parents[1]
NOTEBOOKS = [ROOT / "examples" / f"{name}.ipynb" for name in notebooks.NAMES]
PLACES = {
    ROOT / "README.md": "index.md",
    ROOT / "CHANGELOG.md": "changelog.md",
    ROOT / "CONTRIBUTING.md": "contributing.md",
    ROOT / "examples" / "README.md": "notebooks/index.md",
    **{file: f"notebooks/{file.stem}.md" for file in NOTEBOOKS},
}
"""Pages that stand elsewhere in the repository, and their places in the site."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages."""
    for name, content in pages():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Pages link to each other as they stand in the repository; in the site they may stand elsewhere."""
    places = {place: source for source, place in PLACES.items()}
    place = page.file.src_uri
    return _moved(markdown, places.get(place, ROOT / "docs" / place), place)


def pages() -> Iterator[tuple[str, str | bytes]]:
    """Paths and contents of the generated pages, and of their pictures."""
    for source, place in PLACES.items():
        if source.suffix == ".md":
            yield place, source.read_text(encoding="utf-8")
    for file in NOTEBOOKS:
        text, pictures = notebooks.page_of(file)
        yield PLACES[file], text
        yield from ((f"notebooks/{name}", picture) for name, picture in pictures.items())
    yield "commands.md", commands()
    yield "recipes.md", recipes()
    yield "reference/index.md", overview()
    for package in equilibria._PACKAGES:
        yield f"reference/{package}.md", reference(package)


def _moved(text: str, source: Path, place: str) -> str:
    """A page with its links as they lead from its place; what is not part of the site is named and not linked."""

    def moved(match: re.Match[str]) -> str:
        shown, target = match.groups()
        path, mark, anchor = target.partition("#")
        if not path or ":" in path:
            return match.group()
        file = Path(os.path.normpath(source.parent / path))
        if file not in PLACES and (not file.is_relative_to(ROOT / "docs") or file.is_dir()):
            # A picture of a notebook stands beside it in the site alone.
            if source in NOTEBOOKS and file.parent == source.parent:
                return match.group()
            return shown if shown == file.name else f"{shown} (`{file.relative_to(ROOT)}`)"
        to = PLACES.get(file) or file.relative_to(ROOT / "docs").as_posix()
        return f"[{shown}]({os.path.relpath(to, os.path.dirname(place))}{mark}{anchor})"

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
        training = read_recipe(name).training
        size = f"{training.steps:,} steps of {training.batch_size} x {training.segment_length} tokens"
        parts.append(f"### {name}\n\n**{lines[0]}** *{size}*\n\n" + "\n".join(lines[1:]).strip() + "\n")
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
