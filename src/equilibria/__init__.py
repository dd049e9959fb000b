"""equilibria: deep equilibrium models that converge, stay causal and say so when they do not."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from equilibria.diagnostics import (
        audit_batch_invariance,
        audit_causality,
        audit_coupling,
        gradient_error,
        path_independence,
        spectral_radius,
    )
    from equilibria.fixed_point import DEQ, fixed_point
    from equilibria.gradients import (
        AdjointMemory,
        Guarded,
        Implicit,
        JacobianFree,
        Neumann,
        Phantom,
        ReuseInverse,
        Reversible,
        Switching,
        Unrolled,
        fixed_point_correction,
    )
    from equilibria.inference import load
    from equilibria.measuring import saved_bytes
    from equilibria.penalties import jacobian_penalty, residual_penalty
    from equilibria.solvers import (
        GMRES,
        Anderson,
        Broyden,
        ConvergenceError,
        ConvergenceWarning,
        Draft,
        NewtonKrylov,
        Picard,
        Solution,
        Status,
    )

    __version__: str

__all__ = [
    "DEQ",
    "GMRES",
    "AdjointMemory",
    "Anderson",
    "Broyden",
    "ConvergenceError",
    "ConvergenceWarning",
    "Draft",
    "Guarded",
    "Implicit",
    "JacobianFree",
    "Neumann",
    "NewtonKrylov",
    "Phantom",
    "Picard",
    "ReuseInverse",
    "Reversible",
    "Solution",
    "Status",
    "Switching",
    "Unrolled",
    "audit_batch_invariance",
    "audit_causality",
    "audit_coupling",
    "fixed_point",
    "fixed_point_correction",
    "gradient_error",
    "jacobian_penalty",
    "load",
    "path_independence",
    "residual_penalty",
    "saved_bytes",
    "spectral_radius",
]

_HOMES = {
    "AdjointMemory": "equilibria.gradients",
    "Anderson": "equilibria.solvers",
    "Broyden": "equilibria.solvers",
    "ConvergenceError": "equilibria.solvers",
    "ConvergenceWarning": "equilibria.solvers",
    "DEQ": "equilibria.fixed_point",
    "Draft": "equilibria.solvers",
    "GMRES": "equilibria.solvers",
    "Guarded": "equilibria.gradients",
    "Implicit": "equilibria.gradients",
    "JacobianFree": "equilibria.gradients",
    "Neumann": "equilibria.gradients",
    "NewtonKrylov": "equilibria.solvers",
    "Phantom": "equilibria.gradients",
    "Picard": "equilibria.solvers",
    "ReuseInverse": "equilibria.gradients",
    "Reversible": "equilibria.gradients",
    "Solution": "equilibria.solvers",
    "Status": "equilibria.solvers",
    "Switching": "equilibria.gradients",
    "Unrolled": "equilibria.gradients",
    "audit_batch_invariance": "equilibria.diagnostics",
    "audit_causality": "equilibria.diagnostics",
    "audit_coupling": "equilibria.diagnostics",
    "fixed_point": "equilibria.fixed_point",
    "fixed_point_correction": "equilibria.gradients",
    "gradient_error": "equilibria.diagnostics",
    "jacobian_penalty": "equilibria.penalties",
    "load": "equilibria.inference",
    "path_independence": "equilibria.diagnostics",
    "residual_penalty": "equilibria.penalties",
    "saved_bytes": "equilibria.measuring",
    "spectral_radius": "equilibria.diagnostics",
}


def _version() -> str:
    """Of the installed package; the metadata are read when they are asked for, since that takes a while."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("equilibria")
    except PackageNotFoundError:
        return "0+unknown"


class _Package(ModuleType):
    """Imports a public name when it is first used: PyTorch takes a second, and help needs none of them."""

    def __getattr__(self, name: str) -> object:
        if name == "__version__":
            return _version()
        if name not in _HOMES:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_HOMES[name]), name)
        setattr(self, name, value)
        return value

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_HOMES, "__version__"})

    def __setattr__(self, name: str, value: object) -> None:
        # The import system binds a submodule here; what is public is the function of the same name, `fixed_point`.
        if name in _HOMES and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
