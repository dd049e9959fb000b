"""The radius of the spectrum of a map's Jacobian at a state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from equilibria.gradients.adjoint import TrackedEvaluation, evaluate
from equilibria.solvers import Map, State


def spectral_radius(
    f: Map, z: State, iterations: int = 40, seed: int = 0, tokens: Sequence[int] | None = None
) -> float:
    """The largest modulus of an eigenvalue of the Jacobian of `f` at `z`, by Arnoldi iteration (Arnoldi 1951).

    Unlike power iteration it is right for complex leading pairs. Below 1, plain iteration converges from nearby.

    Where a map hands things on from token to token, as recurrent cells do, a Krylov space smaller than the state does
    not see that the chain ends: what is found is nearer to the rate of the first so many evaluations, and larger.
    The Jacobian of a causal map is block triangular, so its eigenvalues are those of single tokens, and with `tokens`
    they are found exactly.

    Args:
        f: the map.
        z: the state.
        iterations: size of the Krylov space; exact when it reaches the number of elements, but for rounding, which a
            long chain amplifies.
        seed: of the starting vector.
        tokens: for causal maps: positions along the second dimension. The largest modulus of an eigenvalue of the
            blocks by which each of these tokens acts on itself, for which the Krylov space only needs the number of
            elements of a token. It takes as many backward passes for each.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, found {iterations}")
    if tokens is not None and not len(tokens):
        raise ValueError("tokens must name at least 1 position, or be None for the whole state; found none")
    evaluation, _ = evaluate(f, z)
    radii = []
    for part in [(...,)] if tokens is None else [(slice(None), token) for token in tokens]:
        transposed = _TransposedBlock(evaluation, part)
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(transposed.size, generator=generator, dtype=torch.float64).to(evaluation.inputs[0].device)
        radii.append(_largest_eigenvalue(transposed, start, iterations))
    return max(radii)


@dataclass(frozen=True)
class _TransposedBlock:
    """The transposed Jacobian, or that of a part of the state with itself; the same spectrum as the plain one.

    Transposed, a product needs one backward pass.
    """

    evaluation: TrackedEvaluation
    part: tuple[Any, ...]

    @property
    def size(self) -> int:
        return sum(leaf[self.part].numel() for leaf in self.evaluation.outputs)

    def __call__(self, v: Tensor) -> Tensor:
        probe = tuple(torch.zeros_like(leaf) for leaf in self.evaluation.outputs)
        targets = [leaf[self.part] for leaf in probe]
        for target, piece in zip(targets, v.split([target.numel() for target in targets]), strict=True):
            target.copy_(piece.reshape(target.shape))
        product = self.evaluation.transposed(probe)
        return torch.cat([leaf[self.part].flatten().double() for leaf in product])


def _largest_eigenvalue(product: Callable[[Tensor], Tensor], start: Tensor, iterations: int) -> float:
    """The largest modulus of an eigenvalue of a linear map, as its Krylov space from `start` shows it."""
    basis = [start / torch.linalg.vector_norm(start)]
    hessenberg = torch.zeros(iterations + 1, iterations, dtype=torch.float64)
    used = 0
    for k in range(min(iterations, start.numel())):
        w = product(basis[k])
        before = float(torch.linalg.vector_norm(w))
        for _ in range(2):
            for j, direction in enumerate(basis):
                overlap = torch.dot(direction, w)
                hessenberg[j, k] += float(overlap)
                w = w - overlap * direction
        length = float(torch.linalg.vector_norm(w))
        hessenberg[k + 1, k] = length
        used = k + 1
        if length <= 1e-12 * before:
            break
        basis.append(w / length)
    return float(torch.linalg.eigvals(hessenberg[:used, :used]).abs().max())
