"""What a problem of the bank is, and its dense oracle: Newton's method and the implicit function theorem in float64.

The oracle shares no code with the library. It takes the whole state as one vector, so that it is right for maps that
couple rows too, and its Jacobian is dense.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

ParametricMap = Callable[[Tensor, Tensor], Tensor]
"""`(z, θ) → f(z; θ)`: states `(rows, features)`, parameters a vector; computed in the dtype of `z`."""


@dataclass(frozen=True)
class Problem:
    """A map with a start, parameters, and what is known of its solutions.

    Attributes:
        name: unique in the bank.
        source: where the problem comes from.
        map: `f(z; θ)`.
        start: `(rows, features)`, float64.
        parameters: `θ`, float64, a vector; the implicit gradient is checked with respect to it.
        answer: a solution in closed form, of the shape of `start`; None where there is none.
        unique: whether `answer` is the only solution in reach, so that what converged must be near it.
        singular: `I − ∂f/∂z` is singular at a solution: there is no implicit gradient, and the residual says little of
            the distance.
        coupled: rows depend on each other; otherwise each row is a problem of its own.
        rotates: the eigenvalues of `∂f/∂z` that decide the rate are complex.
    """

    name: str
    source: str
    map: ParametricMap
    start: Tensor
    parameters: Tensor
    answer: Tensor | None = None
    unique: bool = False
    singular: bool = False
    coupled: bool = False
    rotates: bool = False

    def __post_init__(self) -> None:
        assert self.start.dim() == 2, self.name
        assert self.parameters.dim() == 1, self.name
        assert self.start.dtype is self.parameters.dtype is torch.float64, self.name

    def at(self, parameters: Tensor) -> Callable[[Tensor], Tensor]:
        """`z → f(z; θ)`."""
        return lambda z: self.map(z, parameters)

    def residual(self, z: Tensor) -> float:
        """`‖f(z) − z‖ / ‖f(z)‖` of the whole state in float64; 0 at a solution that is zero."""
        with torch.no_grad():
            z = z.double().reshape(self.start.shape)
            value = self.map(z, self.parameters)
            difference = torch.linalg.vector_norm(value - z)
            return float(difference / torch.linalg.vector_norm(value)) if difference > 0 else 0.0

    def jacobian(self, z: Tensor) -> Tensor:
        """`∂f/∂z` of the whole state, dense, `(n, n)`."""
        return _jacobian(lambda x: self.map(x, self.parameters), z)

    def polished(self, z: Tensor, steps: int = 30) -> Tensor | None:
        """The solution that Newton's method reaches from `z`; None where it reaches none."""
        z = z.detach().double().reshape(self.start.shape)
        identity = torch.eye(z.numel(), dtype=torch.float64)
        smallest = torch.inf
        for _ in range(steps):
            residual = (self.map(z, self.parameters) - z).detach().flatten()
            size = float(torch.linalg.vector_norm(residual))
            if not math.isfinite(size):
                return None
            if size == 0 or (size <= 1e-12 * (1 + float(torch.linalg.vector_norm(z))) and size >= 0.5 * smallest):
                break
            smallest = min(smallest, size)
            step = torch.linalg.lstsq(identity - self.jacobian(z), residual.unsqueeze(-1)).solution.squeeze(-1)
            z = z + step.reshape(z.shape)
        return z if bool(torch.isfinite(z).all()) and self.residual(z) <= 1e-9 else None

    def condition(self, z: Tensor) -> float:
        """`‖(I − J)⁻¹‖`: how far a solution is at most for a small residual, to first order."""
        singular = torch.linalg.svdvals(torch.eye(z.numel(), dtype=torch.float64) - self.jacobian(z))
        return 1.0 / max(float(singular.min()), 1e-300)

    def implicit_gradient(self, z: Tensor, incoming: Tensor) -> tuple[Tensor, float]:
        """`(∂f/∂θ)ᵀ (I − J)⁻ᵀ g` at a solution, by dense linear algebra; and the size of what was added up for it.

        A sum whose terms cancel is known to the rounding of its terms, not to its own.
        """
        identity = torch.eye(z.numel(), dtype=torch.float64)
        adjoint = torch.linalg.solve((identity - self.jacobian(z)).mT, incoming.flatten())
        by_parameter = _jacobian(lambda p: self.map(z, p), self.parameters)
        terms = by_parameter * adjoint.unsqueeze(-1)
        return terms.sum(0), float(torch.linalg.vector_norm(terms.abs().sum(0)))


def root(function: ParametricMap, scale: float = 1.0) -> ParametricMap:
    """`F(z; θ) = 0` as a fixed point: `z − scale · F(z; θ)`."""
    return lambda z, p: z - scale * function(z, p)


def vector(*values: float) -> Tensor:
    """A float64 vector."""
    return torch.tensor(values, dtype=torch.float64)


def row(*values: float) -> Tensor:
    """One row, `(1, features)`, float64."""
    return torch.tensor([values], dtype=torch.float64)


def columns(*values: Tensor) -> Tensor:
    """`(rows, features)` from one tensor `(rows,)` per feature."""
    return torch.stack(values, dim=-1)


def numbers(first: int, last: int, z: Tensor) -> Tensor:
    """`first … last` in the dtype of `z`."""
    return torch.arange(first, last + 1, dtype=torch.float64).to(z)


@cache
def seeded(seed: int, *shape: int) -> Tensor:
    """Standard normal, float64; the same tensor each time, not to be changed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _jacobian(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        value = f(x).flatten()
        directions = torch.eye(value.numel(), dtype=value.dtype)
        found = torch.autograd.grad(value, x, directions, is_grads_batched=True, materialize_grads=True)[0]
    return found.flatten(1)
