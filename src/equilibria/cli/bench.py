"""`equilibria bench`."""

import sys
from importlib import import_module
from types import ModuleType
from typing import Annotated

from cyclopts import App, Parameter

from equilibria.cli.checkout import in_checkout

# `--help` after a benchmark's name is for the benchmark.
command = App(name="bench", usage="Usage: equilibria bench NAME [ARGS...]", help_flags=[])


@command.default
def bench(
    name: Annotated[str, Parameter(allow_leading_hyphen=True)],
    /,
    *arguments: Annotated[str, Parameter(allow_leading_hyphen=True)],
) -> int:
    """Run a benchmark; it prints a table, or with --json one JSON object.

    Args:
        name: a file of the checkout's folder benchmarks, without ".py".
        arguments: handed to the benchmark as they are; NAME --help says what it takes.
    """
    if name in ("--help", "-h"):
        command.help_print([])
        return 0
    path = in_checkout("benchmarks", f"{name}.py")
    # Benchmarks share code as a package that is not installed.
    package = ModuleType("benchmarks")
    package.__path__ = [str(path.parent.resolve())]
    sys.modules["benchmarks"] = package
    sys.modules.pop(f"benchmarks.{name}", None)
    return import_module(f"benchmarks.{name}").main(list(arguments))
