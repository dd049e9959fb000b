"""equilibria: deep equilibrium models that converge, stay causal and say so when they do not."""

from equilibria.diagnostics import (
    audit_batch_invariance,
    audit_causality,
    gradient_error,
    jacobian_penalty,
    residual_penalty,
    saved_bytes,
    spectral_radius,
)
from equilibria.fixed_point import DEQ, fixed_point
from equilibria.gradients import Implicit, Phantom, Unrolled
from equilibria.inference import load
from equilibria.solvers import (
    GMRES,
    Anderson,
    Broyden,
    ConvergenceError,
    ConvergenceWarning,
    Picard,
    Solution,
    Status,
)

__all__ = [
    "DEQ",
    "GMRES",
    "Anderson",
    "Broyden",
    "ConvergenceError",
    "ConvergenceWarning",
    "Implicit",
    "Phantom",
    "Picard",
    "Solution",
    "Status",
    "Unrolled",
    "audit_batch_invariance",
    "audit_causality",
    "fixed_point",
    "gradient_error",
    "jacobian_penalty",
    "load",
    "residual_penalty",
    "saved_bytes",
    "spectral_radius",
]
