"""What is measured of a trained model's equilibrium, beside its loss."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

import equilibria as eq
from benchmarks._race import Racer
from equilibria.data.batches import Segment
from equilibria.depths import Equilibrium
from equilibria.models import LanguageModel

BUDGETS = (2, 4, 8, 16, 32, 64)
TOLERANCE = 1e-2
"""The residual within which a token counts as converged."""


@torch.no_grad()
def injected(model: LanguageModel, tokens: Tensor) -> Tensor:
    """What the cell of a model injects, given the tokens of a segment."""
    inputs, prelude = model.embedding(tokens) * model.cell.d_model**0.5, model.prelude
    return inputs if prelude is None else prelude.bind(inputs)(prelude.initial_state(inputs))


@dataclass(frozen=True)
class Solved:
    """A trained model's equilibrium on validation text.

    Args:
        model: whose depth is an equilibrium.
        segments: of the text, read from the start.
    """

    model: LanguageModel
    segments: list[Segment]

    @torch.no_grad()
    def at_budget(self, budget: int) -> dict[str, float]:
        """Loss, mean residual and share of converged tokens after so many evaluations, whatever the tolerance."""
        depth = self.model.depth
        assert isinstance(depth, Equilibrium)
        limited = replace(depth, eval_solver=replace(depth.eval_solver, tol=1e-9, max_evaluations=budget))
        memory, losses, residuals = None, [], []
        for segment in self.segments:
            output = self.model(segment.inputs, segment.targets, memory, depth=limited)
            memory = output.memory
            assert output.loss is not None
            assert output.solution is not None
            losses.append(float(output.loss))
            residuals.append(output.solution.residual.expand(segment.inputs.shape).flatten())
        residual = torch.cat(residuals)
        return {
            "loss": statistics.fmean(losses),
            "residual": float(residual.mean()),
            "converged": float((residual <= TOLERANCE).float().mean()),
        }

    def dynamics(self) -> dict[str, float | None]:
        """Spectral radius, gain from token to token, and the error of the gradient, on one short text."""
        tokens = self.segments[0].inputs[:1, :32]
        inputs = injected(self.model, tokens)
        with torch.no_grad():
            bound = self.model.cell.bind(inputs)
        start = self.model.cell.initial_state(inputs)

        def f(z: Tensor) -> Tensor:
            return bound(z)

        tight = eq.Anderson(tol=1e-5, max_evaluations=300, history=5, scope="prefix")
        with torch.no_grad():
            z = eq.fixed_point(f, start, tight, on_failure="ignore").value
        last = z.shape[1] - 1
        return {
            "radius": eq.spectral_radius(f, z, iterations=z.shape[-1], tokens=[last // 2, last]),
            "token_gain": token_gain(f, z, last),
            "gradient_error": self._gradient_error(tokens),
        }

    def _gradient_error(self, tokens: Tensor) -> float | None:
        """Relative error of the training gradient of the cell's weights; None where the reference did not converge."""
        model, depth = self.model, self.model.depth
        assert isinstance(depth, Equilibrium)
        inputs = injected(model, tokens)
        bound = model.cell.bind(inputs)
        weights = {name: weight for name, weight in model.cell.named_parameters() if weight.ndim == 2}
        start = model.cell.initial_state(inputs)
        try:
            errors = eq.gradient_error(bound, start, depth.solver, depth.gradient, parameters=weights)
        except eq.ConvergenceError:
            return None
        return statistics.fmean(error.relative_error for error in errors.values())


def token_gain(f: Any, z: Tensor, token: int) -> float:
    """How much a small change of the token before changes a token at the equilibrium: the norm of
    `(I − J_tt)⁻¹ J_t,t−1`, with the blocks of the Jacobian at `z` (1, L, D)."""
    point = z.detach().requires_grad_()
    value = f(point)[0, token]
    rows = [torch.autograd.grad(value[d], point, retain_graph=True)[0][0] for d in range(value.shape[-1])]
    jacobian = torch.stack(rows).double()  # (D, L, D)
    own, before = jacobian[:, token], jacobian[:, token - 1]
    return float(torch.linalg.matrix_norm(torch.linalg.solve(torch.eye(len(own)).to(own) - own, before), ord=2))


def figures_of(racer: Racer) -> dict[str, Any]:
    """Everything that is measured of a trained row."""
    model, found = racer.contender.loop.evaluated, racer.figures()
    if isinstance(model, LanguageModel) and isinstance(model.depth, Equilibrium):
        model.eval()
        solved = Solved(model, list(islice(racer.validation(), 8)))
        found["budgets"] = {str(budget): solved.at_budget(budget) for budget in BUDGETS}
        found |= solved.dynamics()
    return found
