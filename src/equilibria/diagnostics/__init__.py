"""Measurements that tell whether an equilibrium model keeps its promises."""

from equilibria.diagnostics.audits import Audit, audit_batch_invariance, audit_causality
from equilibria.diagnostics.gradient_error import GradientError, gradient_error
from equilibria.diagnostics.jacobian import Coupling, audit_coupling, spectral_radii, spectral_radius
from equilibria.diagnostics.path_independence import PathIndependence, path_independence

__all__ = [
    "Audit",
    "Coupling",
    "GradientError",
    "PathIndependence",
    "audit_batch_invariance",
    "audit_causality",
    "audit_coupling",
    "gradient_error",
    "path_independence",
    "spectral_radii",
    "spectral_radius",
]
