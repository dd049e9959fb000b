"""Measurements that tell whether an equilibrium model keeps its promises."""

from equilibria.diagnostics.audits import Audit, audit_batch_invariance, audit_causality
from equilibria.diagnostics.coupling import Coupling, audit_coupling
from equilibria.diagnostics.gradient_error import GradientError, gradient_error
from equilibria.diagnostics.jacobian import jacobian_penalty, spectral_radius
from equilibria.diagnostics.memory import saved_bytes
from equilibria.diagnostics.path_independence import PathIndependence, path_independence
from equilibria.diagnostics.residual import residual_penalty

__all__ = [
    "Audit",
    "Coupling",
    "GradientError",
    "PathIndependence",
    "audit_batch_invariance",
    "audit_causality",
    "audit_coupling",
    "gradient_error",
    "jacobian_penalty",
    "path_independence",
    "residual_penalty",
    "saved_bytes",
    "spectral_radius",
]
