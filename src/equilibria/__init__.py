"""equilibria: deep equilibrium models that converge, stay causal and say so when they do not.

The public names are those that the packages below export. They are imported when first used: importing PyTorch takes a
second, and `--help` needs none of them.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from equilibria.cells import *
    from equilibria.configuration import *
    from equilibria.data import *
    from equilibria.depths import *
    from equilibria.deq import *
    from equilibria.diagnostics import *
    from equilibria.errors import *
    from equilibria.gradients import *
    from equilibria.inference import *
    from equilibria.measuring import *
    from equilibria.models import *
    from equilibria.penalties import *
    from equilibria.report import *
    from equilibria.solvers import *
    from equilibria.training import *

    __version__: str

# From the bottom up, so that a name imports only packages below its own.
_PACKAGES = (
    *("errors", "solvers", "gradients", "deq", "penalties", "diagnostics", "cells", "depths", "models", "data"),
    *("configuration", "inference", "training", "measuring", "report"),
)


def _public(package: str) -> list[str]:
    return import_module(f"{__name__}.{package}").__all__


def __dir__() -> list[str]:
    return sorted({*globals(), "__version__", *(name for package in _PACKAGES for name in _public(package))})


if not TYPE_CHECKING:  # a type checker would take any name for one of the package

    def __getattr__(name: str) -> object:
        if name == "__version__":
            from importlib.metadata import PackageNotFoundError, version  # slow

            try:
                return version(__name__)
            except PackageNotFoundError:
                return "0+unknown"
        if name == "__all__":
            return [name for package in _PACKAGES for name in _public(package)]
        # The import system asks here for submodules, too, before it loads them.
        if not name.startswith("_") and find_spec(f"{__name__}.{name}") is None:
            for package in _PACKAGES:
                if name in _public(package):
                    value = getattr(import_module(f"{__name__}.{package}"), name)
                    return globals().setdefault(name, value)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
