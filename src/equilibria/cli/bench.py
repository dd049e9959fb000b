"""`equilibria bench`."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from typing import Annotated

from cyclopts import App, Parameter

from equilibria.cli.checkout import in_checkout

command = App(name="bench")


@command.default
def bench(name: str, /, *arguments: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> int:
    """Run a benchmark; it prints a table, or with --json one JSON object.

    Args:
        name: a file of the checkout's folder benchmarks, without ".py".
        arguments: handed to the benchmark as they are.
    """
    path = in_checkout("benchmarks", f"{name}.py")
    spec = spec_from_file_location(f"benchmarks.{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.main(list(arguments))
