"""Notebooks from scripts: each `examples/NAME.py` with `# %%` between its cells becomes `examples/NAME.ipynb`.

    python examples/notebooks.py                         execute all of them and write the notebooks
    python examples/notebooks.py a-state-tracker         or some
    python examples/notebooks.py --pages FOLDER          write Markdown and pictures of the notebooks as they are

The scripts are what is edited and reviewed. A notebook keeps the hash of the code that made its outputs; when only the
text has changed, the outputs are kept. Nothing but matplotlib is needed.
"""

import argparse
import ast
import base64
import hashlib
import io
import json
import re
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, chdir, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from gallery.picture import png

HERE = Path(__file__).parent
NAMES = ("mlp-as-equilibrium", "what-the-gradient-does", "a-state-tracker")
DPI = 130


@dataclass(frozen=True)
class Cell:
    """Markdown or code, without the marks of the script."""

    kind: Literal["markdown", "code"]
    source: str


@dataclass(frozen=True)
class Ran:
    """What a cell printed, and the figures it made as PNG, each with its title."""

    printed: str
    pictures: Sequence[tuple[str, bytes]]


def cells(script: str) -> list[Cell]:
    """The cells of a script; what is above the first mark is not part of the notebook."""
    found = []
    for part in re.split(r"^# %%", script, flags=re.MULTILINE)[1:]:
        mark, _, source = part.partition("\n")
        if mark.strip() == "[markdown]":
            lines = [re.sub(r"^# ?", "", line) for line in source.strip().splitlines()]
            found.append(Cell("markdown", "\n".join(lines)))
        else:
            found.append(Cell("code", source.strip()))
    return found


def fingerprint(of: Sequence[Cell]) -> str:
    """Of the code, which decides the outputs."""
    code = "\0".join(cell.source for cell in of if cell.kind == "code")
    return hashlib.sha256(code.encode()).hexdigest()


def execute(of: Sequence[Cell], names: dict[str, Any]) -> Iterator[Ran]:
    """Executes the code cells one after another, in an empty folder; `names` is their namespace. Warnings are errors.
    What they set for the whole process is put back."""
    import matplotlib
    import torch

    matplotlib.use("Agg")
    names["__name__"] = "__main__"
    with ExitStack() as stack:
        stack.enter_context(chdir(stack.enter_context(TemporaryDirectory())))
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(matplotlib.rc_context())
        stack.enter_context(torch.random.fork_rng())
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        warnings.simplefilter("error")
        for number, cell in enumerate((cell for cell in of if cell.kind == "code"), start=1):
            printed = io.StringIO()
            with redirect_stdout(printed):
                value = _value(cell.source, f"cell {number}", names)
                if value is not None:
                    print(repr(value))
            yield Ran(printed.getvalue(), _pictures())


def _value(source: str, name: str, names: dict[str, Any]) -> object:
    """Executes a cell; the value of its last line where that is an expression."""
    *body, last = ast.parse(source).body
    if not isinstance(last, ast.Expr):
        body, last = [*body, last], None
    exec(compile(ast.Module(body, []), name, "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), name, "eval"), names)


def _pictures() -> list[tuple[str, bytes]]:
    """All open figures, which are closed."""
    import matplotlib.pyplot as plt

    found = []
    for number in plt.get_fignums():
        figure = plt.figure(number)
        titles = [figure.get_suptitle(), *(axes.get_title(loc) for axes in figure.axes for loc in ("left", "center"))]
        found.append(("; ".join(filter(None, titles)), png(figure, DPI)))
    plt.close("all")
    return found


def notebook(of: Sequence[Cell], ran: Sequence[Ran]) -> dict[str, Any]:
    """The notebook of cells and what its code cells gave."""
    results = iter(enumerate(ran, start=1))
    written: list[dict[str, Any]] = []
    for number, cell in enumerate(of, start=1):
        entry = {"cell_type": cell.kind, "id": f"cell-{number}", "metadata": {}, "source": _lines(cell.source)}
        if cell.kind == "code":
            count, result = next(results)
            entry |= {"execution_count": count, "outputs": _outputs(result)}
        written.append(entry)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {
        "equilibria": {"code": fingerprint(of)},
        "kernelspec": kernel,
        "language_info": {"name": "python"},
    }
    return {"cells": written, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def _outputs(result: Ran) -> list[dict[str, Any]]:
    printed = {"name": "stdout", "output_type": "stream", "text": _lines(result.printed)}
    shown = [
        {
            "data": {"image/png": base64.b64encode(picture).decode() + "\n", "text/plain": [title]},
            "metadata": {},
            "output_type": "display_data",
        }
        for title, picture in result.pictures
    ]
    return [printed, *shown] if result.printed else shown


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def kept(file: Path) -> tuple[dict[str, Any], list[Ran]]:
    """A notebook as it was written, and what its code cells gave."""
    content = json.loads(file.read_text(encoding="utf-8"))
    ran = []
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            printed = "".join("".join(output["text"]) for output in cell["outputs"] if "text" in output)
            shown = [output["data"] for output in cell["outputs"] if "data" in output]
            pictures = [("".join(data["text/plain"]), base64.b64decode(data["image/png"])) for data in shown]
            ran.append(Ran(printed, pictures))
    return content, ran


def write(name: str, again: bool = False) -> Path:
    """Writes the notebook of a script, executed where its code has changed or `again`."""
    of, file = cells((HERE / f"{name}.py").read_text(encoding="utf-8")), HERE / f"{name}.ipynb"
    ran = None
    if file.exists() and not again:
        content, before = kept(file)
        ran = before if content["metadata"]["equilibria"]["code"] == fingerprint(of) else None
    ran = ran if ran is not None else list(execute(of, {}))
    file.write_text(json.dumps(notebook(of, ran), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return file


def page_of(file: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, with links as they stand in it, and its pictures by file name."""
    content, ran = kept(file)
    results, parts, pictures = iter(ran), [], {}
    for cell in content["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        result = next(results)
        if result.printed:
            parts.append(f"```text\n{result.printed.rstrip()}\n```")
        for title, picture in result.pictures:
            name = f"{file.stem}-{len(pictures) + 1}.png"
            pictures[name] = picture
            parts.append(f"![{title}]({name})")
    return "\n\n".join(parts) + "\n", pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, help="of the notebooks; all by default")
    parser.add_argument("--again", action="store_true", help="execute them even if their code has not changed")
    given = parser.parse_args()
    for name in given.names:
        if name not in NAMES:
            sys.exit(f"{name} is no notebook; there are {', '.join(NAMES)}")
        began = time.perf_counter()
        file = write(name, given.again)
        print(f"{file}: {file.stat().st_size / 1000:.0f} kB, {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
