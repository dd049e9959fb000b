"""The tree in README.md is that of src/, each line what the file's docstring begins with.

`.venv/bin/python tests/test_readme.py` brings the README up to date.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
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
    return "".join(f"{name:<28}{text}\n" for name, text in entries(ROOT / "src" / "equilibria"))


def test_the_tree_is_up_to_date() -> None:
    shown = BLOCK.search(README.read_text(encoding="utf-8"))
    assert shown is not None
    assert shown.group() == tree(), "run `.venv/bin/python tests/test_readme.py`"


def test_every_file_says_what_it_is() -> None:
    assert [name for name, text in entries(ROOT / "src" / "equilibria") if not text] == []


if __name__ == "__main__":
    README.write_text(BLOCK.sub(lambda _: tree(), README.read_text(encoding="utf-8")), encoding="utf-8")
