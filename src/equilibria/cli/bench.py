"""`equilibria bench`, whose benchmarks are in the source checkout and not in the installed package."""

import ast
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Annotated

from cyclopts import App, Parameter

from equilibria.errors import UserError, nearest

_CHECKOUTS = (Path(__file__).parents[3], Path())  # that of this code; where it has the same, the working directory
# `--help` after a benchmark's name is for the benchmark.
command = App(name="bench", usage="Usage: equilibria bench [NAME] [ARGS ...]", help_flags=[])


@command.default
def bench(
    name: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    /,
    *arguments: Annotated[str, Parameter(allow_leading_hyphen=True)],
) -> int:
    """Run a benchmark; it prints a table, or with --json one JSON object.

    Args:
        name: a file of the checkout's folder benchmarks, without ".py"; without a name all are listed.
        arguments: handed to the benchmark as they are; NAME --help says what it takes.
    """
    if name in ("--help", "-h"):
        command.help_print([])
        return 0
    if name is None:
        for known, file in _files().items():
            about = ast.get_docstring(ast.parse(file.read_bytes())) or ""
            print(f"{known:20} {about.partition(chr(10))[0]}")
        return 0
    folder = _file(name).parent.resolve()
    # Benchmarks share code as a package that is not installed.
    package = ModuleType("benchmarks")
    package.__path__ = [str(folder)]
    sys.modules["benchmarks"] = package
    sys.modules.pop(f"benchmarks.{name}", None)
    return import_module(f"benchmarks.{name}").main(list(arguments))


def _file(name: str) -> Path:
    """The file of a benchmark; a UserError if there is none."""
    files = _files()
    if name in files:
        return files[name]
    close = nearest(name, files)
    instead = f"the nearest is {close}, and " if close else ""
    raise UserError(f"there is no benchmark {name}; {instead}there are {', '.join(files)}")


def _files() -> dict[str, Path]:
    """All benchmarks, by name; a UserError outside a checkout."""
    files = {path.stem: path for root in _CHECKOUTS for path in sorted(root.glob("benchmarks/[!_]*.py"))}
    if not files:
        raise UserError("there is no folder benchmarks here; run this in a checkout of the sources")
    return files
