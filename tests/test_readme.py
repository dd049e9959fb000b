"""The README is short, its example runs and its links lead somewhere; the tree in docs/architecture.md is that of src/.

`.venv/bin/python tests/test_readme.py` brings the tree up to date: each line is what the file's docstring begins with.
"""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import equilibria as eq
from equilibria.cli.app import app
from equilibria.configuration import read_recipe
from equilibria.sweep.grid import read_grid

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?<=```text\nsrc/equilibria/\n).*?(?=```)", re.DOTALL)
OTHER = {
    "py.typed": "says that the package is typed",
    "index.html": "the page",
    "page.css": "the look of the page",
    "page.js": "what the page does",
}
FOLDERS = {"playground": "a page that writes text with the model, each token shaded by its evaluations"}


def entries(folder: Path, indent: str = "  ") -> Iterator[tuple[str, str]]:
    """Name and description of everything below a folder, a package's own description beside its name."""
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_dir(), path.name)):
        if path.is_dir() and path.name in FOLDERS:
            yield f"{indent}{path.name}/", FOLDERS[path.name]
            yield from entries(path, indent + "  ")
        elif path.is_dir() and (path / "__init__.py").exists():
            yield f"{indent}{path.name}/", first_sentence(path / "__init__.py")
            yield from entries(path, indent + "  ")
        elif path.name in OTHER:
            yield indent + path.name, OTHER[path.name]
        elif path.suffix == ".py" and (path.name != "__init__.py" or indent == "  "):
            yield indent + path.name, first_sentence(path)


def first_sentence(module: Path) -> str:
    """What a module's docstring begins with, up to the end of a sentence."""
    text = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
    return re.split(r"\.(?:\s+(?=[A-Z`])|$)", " ".join(text.split("\n\n")[0].split()), maxsplit=1)[0]


def tree() -> str:
    """The lines of the tree."""
    return "".join(f"{name:<30}{text}\n" for name, text in entries(ROOT / "src" / "equilibria"))


def test_the_tree_is_up_to_date() -> None:
    shown = BLOCK.search(ARCHITECTURE.read_text(encoding="utf-8"))
    assert shown is not None
    assert shown.group() == tree(), "run `.venv/bin/python tests/test_readme.py`"


def test_every_file_says_what_it_is() -> None:
    assert [name for name, text in entries(ROOT / "src" / "equilibria") if not text] == []


def blocks(language: str) -> list[str]:
    """The code blocks of the README in a language, `""` for those without one."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """What links can name on a page: its headings, as GitHub and GitLab write them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


def test_the_example_of_the_readme_trains_a_layer(capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = blocks("python")
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(program, names)
    assert float(capsys.readouterr().out) < 1.0  # chance is ln 10 = 2.3
    model, images = names["model"], names["images"]
    h = model.encoder(images)
    solution = model.deq(torch.zeros_like(h), h, tol=1e-6)
    assert solution.status is eq.Status.CONVERGED
    torch.testing.assert_close(solution.value, model.deq.cell(solution.value, h), atol=1e-5, rtol=0)


COMMANDS = [
    shlex.split(line, comments=True)[1:]
    for block in blocks("")
    for line in block.splitlines()
    if line.startswith("equilibria ")
]


def test_the_readme_shows_the_main_commands() -> None:
    assert {"train", "eval", "generate", "serve", "report"} <= {words[0] for words in COMMANDS}


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_the_commands_of_the_readme_have_these_flags(words: list[str]) -> None:
    """What each of them does is tested in tests/cli."""
    app.parse_args(words, print_error=False, exit_on_error=False)
    if words[0] == "sweep":
        assert read_grid(words[2:]).recipes(Path(words[1]))
    elif words[0] in ("train", "plan"):
        read_recipe(words[1], words[2:])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    lost = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            lost.append(target)
    assert lost == []


if __name__ == "__main__":
    ARCHITECTURE.write_text(BLOCK.sub(lambda _: tree(), ARCHITECTURE.read_text(encoding="utf-8")), encoding="utf-8")
