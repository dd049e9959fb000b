"""How far a gradient is from the gradient of the exact solution."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from equilibria.deq import fixed_point
from equilibria.gradients import Gradient, Implicit
from equilibria.solvers import GMRES, Anderson, ConvergenceError, Map, Solver, State, Status
from equilibria.solvers.state import as_real, leaves


@dataclass(frozen=True)
class GradientError:
    """Agreement of one tensor's gradient with the converged implicit one; complete where both are zero.

    Attributes:
        cosine: of the angle between them; 1 is agreement.
        relative_norm: norm of the gradient over that of the reference.
        relative_error: norm of the difference over that of the reference.
    """

    cosine: float
    relative_norm: float
    relative_error: float


def gradient_error(
    f: Map,
    z0: State,
    solver: Solver,
    gradient: Gradient,
    parameters: Mapping[str, Tensor],
    reference_solver: Solver | None = None,
    seed: int = 0,
) -> dict[str, GradientError]:
    """Compare `gradient` with the implicit gradient at a tightly converged solution, tensor by tensor.

    The loss is a fixed random linear functional of the solution, the same for both.

    Args:
        f: the map; it closes over `parameters`.
        z0: where both solves start.
        solver, gradient: what to judge.
        parameters: tensors that require grad, by name.
        reference_solver: solves the reference; when None, tight Anderson with a long history, per prefix where `solver`
            goes by token, as mixing each token by itself stalls where tokens are chained.

    Raises:
        ConvergenceError: the reference or its adjoint did not converge, so there is nothing to compare with.
    """
    if reference_solver is None:
        scope = solver.scope if solver.scope in ("sample", "all") else "prefix"
        reference_solver = Anderson(tol=1e-6, max_evaluations=500, history=8, scope=scope)
    tight = Implicit(GMRES(tol=1e-6, max_evaluations=400, restart=100))
    tensors = list(parameters.values())
    judged = fixed_point(f, z0, solver, gradient, on_failure="ignore")
    exact = fixed_point(f, z0, reference_solver, tight, on_failure="raise")
    exact.adjoint.on_failure = None  # it is judged below
    # Retained: both graphs share what `f` closes over, such as the context of a cell.
    found, wanted = (
        torch.autograd.grad(_functional(solution.value, seed), tensors, retain_graph=True, materialize_grads=True)
        for solution in (judged, exact)
    )
    if exact.adjoint.status not in (None, Status.CONVERGED):
        raise ConvergenceError(f"the adjoint of the reference did not converge: {exact.adjoint}", exact)
    return {name: _compare(a, b) for name, a, b in zip(parameters, found, wanted, strict=True)}


def _functional(value: State, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    terms = [
        (leaf * torch.randn(leaf.shape, generator=generator, dtype=torch.float64).to(leaf)).sum()
        for leaf in map(as_real, leaves(value))
    ]
    return torch.stack(terms).sum()


def _compare(found: Tensor, wanted: Tensor) -> GradientError:
    if not (found.any() or wanted.any()):  # zeros have no angle
        return GradientError(cosine=1.0, relative_norm=1.0, relative_error=0.0)
    found, wanted = (as_real(one).flatten().cpu().double() for one in (found, wanted))
    norm, reference = torch.linalg.vector_norm(found), torch.linalg.vector_norm(wanted)
    safe = reference.clamp(min=1e-300)
    return GradientError(
        cosine=float(torch.dot(found, wanted) / (norm * safe).clamp(min=1e-300)),
        relative_norm=float(norm / safe),
        relative_error=float(torch.linalg.vector_norm(found - wanted) / safe),
    )
