"""What a map's Jacobian tells: its spectral radius, and which groups of a state depend on each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from equilibria.devices import widest
from equilibria.gradients.adjoint import TrackedEvaluation, evaluate
from equilibria.ranges import whole
from equilibria.solvers import Map, Scope, State
from equilibria.solvers.residual import norm
from equilibria.solvers.state import Packing, as_real, leaves, rebuild


def spectral_radius(
    f: Map, z: State, iterations: int = 40, seed: int = 0, tokens: Sequence[int] | None = None
) -> float:
    """The largest modulus of an eigenvalue of the Jacobian of `f` at `z`, by Arnoldi iteration (Arnoldi 1951).

    Unlike power iteration it is right for complex leading pairs. Below 1, plain iteration converges from nearby.

    Where a map passes things on from token to token, as recurrent cells do, a Krylov space smaller than the state does
    not see that the chain ends: the result is nearer to the rate of the first `iterations` evaluations, and larger.
    The Jacobian of a causal map is block triangular, so its eigenvalues are those of single tokens, and with `tokens`
    they are found exactly.

    Args:
        iterations: size of the Krylov space; exact when it reaches the number of elements, except for rounding, which a
            long chain amplifies.
        tokens: for causal maps, positions along the second dimension: only the blocks by which each of these tokens
            acts on itself are considered, each in a Krylov space of its own.

    Returns:
        NaN where the Jacobian is not finite.
    """
    evaluation = _evaluation(f, z, iterations, tokens)
    blocks = [_TransposedBlocks(evaluation, part, 1) for part in _parts(tokens)]
    return float(torch.cat([_largest_eigenvalues(block, iterations, seed) for block in blocks]).max())


def spectral_radii(
    f: Map, z: State, iterations: int = 40, seed: int = 0, tokens: Sequence[int] | None = None
) -> Tensor:
    """`spectral_radius` of every sample by itself, for a map that does not couple samples.

    A product with the Jacobian serves all samples at once.

    Returns:
        `(B,)` for samples along the first dimension of the state; with `tokens` `(T, B)`, of each single token. NaN
        where the Jacobian is not finite.
    """
    evaluation = _evaluation(f, z, iterations, tokens)
    samples = len(evaluation.outputs[0])
    blocks = [_TransposedBlocks(evaluation, part, samples) for part in _parts(tokens)]
    radii = torch.stack([_largest_eigenvalues(block, iterations, seed) for block in blocks])
    return radii[0] if tokens is None else radii


def _evaluation(f: Map, z: State, iterations: int, tokens: Sequence[int] | None) -> TrackedEvaluation:
    whole(1, iterations=iterations)
    if tokens is not None and not len(tokens):
        raise ValueError("tokens must name at least 1 position, or be None for the whole state; found none")
    return evaluate(f, z)[0]


def _parts(tokens: Sequence[int] | None) -> list[tuple[Any, ...]]:
    """What to take of a leaf."""
    return [(...,)] if tokens is None else [(slice(None), token) for token in tokens]


@dataclass(frozen=True)
class _TransposedBlocks:
    """The transposed Jacobian, or that of a part of the state with itself, at one backward pass a product. It has the
    same spectrum as the Jacobian. It acts on rows of numbers `(groups, size)`, which it does not couple: on one row of
    all, or on one for each sample."""

    evaluation: TrackedEvaluation
    part: tuple[Any, ...]
    groups: int

    @property
    def size(self) -> int:
        """Numbers of a row."""
        return sum(as_real(leaf[self.part]).numel() for leaf in self.evaluation.outputs) // self.groups

    def __call__(self, v: Tensor) -> Tensor:
        probe = tuple(torch.zeros_like(leaf) for leaf in self.evaluation.outputs)
        targets = [as_real(leaf[self.part]) for leaf in probe]
        sizes = [target.numel() // self.groups for target in targets]
        for target, piece in zip(targets, v.split(sizes, dim=1), strict=True):
            target.copy_(piece.reshape(target.shape))
        product = self.evaluation.transposed(probe)
        # Some devices have no double precision.
        return torch.cat([as_real(leaf[self.part]).reshape(self.groups, -1).cpu().double() for leaf in product], dim=1)


def _largest_eigenvalues(blocks: _TransposedBlocks, iterations: int, seed: int) -> Tensor:
    """The largest modulus of an eigenvalue on the Krylov space of each row from a random start, `(groups,)`."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(blocks.groups, blocks.size, generator=generator, dtype=torch.float64)
    steps = min(iterations, blocks.size)
    basis = start.new_zeros(blocks.groups, steps + 1, blocks.size)
    basis[:, 0] = start / torch.linalg.vector_norm(start, dim=1, keepdim=True)
    hessenberg = start.new_zeros(blocks.groups, steps + 1, steps)
    used = torch.zeros(blocks.groups, dtype=torch.int64)
    going = torch.ones(blocks.groups, dtype=torch.bool)
    for k in range(steps):
        w = blocks(basis[:, k])
        before = torch.linalg.vector_norm(w, dim=1)
        for _ in range(2):
            overlap = torch.einsum("gkn,gn->gk", basis[:, : k + 1], w)
            hessenberg[:, : k + 1, k] += overlap
            w = w - torch.einsum("gkn,gk->gn", basis[:, : k + 1], overlap)
        length = torch.linalg.vector_norm(w, dim=1)
        hessenberg[:, k + 1, k] = length
        used += going
        going = going & (length > 1e-12 * before)  # a row whose space ends goes on with zeros
        if not bool(going.any()):
            break
        basis[:, k + 1] = torch.where(going.unsqueeze(1), w / length.unsqueeze(1), 0.0)
    spaces = [space[:size, :size] for space, size in zip(hessenberg, used.tolist(), strict=True)]
    return torch.stack([_radius(space) for space in spaces])


def _radius(matrix: Tensor) -> Tensor:
    """Of a square matrix; NaN where it is not finite."""
    if not bool(torch.isfinite(matrix).all()):
        return matrix.new_tensor(torch.nan)
    return torch.linalg.eigvals(matrix).abs().max()


@dataclass(frozen=True)
class Coupling:
    """What `audit_coupling` found.

    Attributes:
        coupled: groups that other groups depend on, `(*groups,)`.
        strength: the largest norm of the derivative of some groups by others, over that of some groups by themselves,
            along random directions; exactly 0 where nothing is coupled.
    """

    coupled: Tensor
    strength: float

    def __bool__(self) -> bool:
        return bool(self.coupled.any())


def audit_coupling(f: Map, z: State, scope: Scope = "sample", seed: int = 0) -> Coupling:
    """Find out whether the groups of a map depend on each other at `z`.

    Every pair of groups differs in some binary digit of their numbers. For each digit, random directions of those that
    have it are sent back through one evaluation: what arrives at the others came by a coupling. That is two
    vector-Jacobian products for every doubling of the number of groups, on one stored evaluation.

    A causal map does couple tokens; scopes `"token"` and `"prefix"` are made for that. Where this finds coupled samples
    (batch norm in training, graph layers whose rows are nodes, attention over a batch), solve with `scope="all"`.

    Args:
        f: the map, differentiable.
        z: a state like the solution.
        scope: what a group is.
    """
    packing = Packing.of(z, scope)
    evaluation, _ = evaluate(f, z)
    packed = packing.pack(z)
    groups, count = packed.shape[:-1], packed[..., 0].numel()
    numbers = torch.arange(count, device=packed.device).reshape(groups)
    coupled = torch.zeros(groups, dtype=torch.bool, device=packed.device)
    generator = torch.Generator().manual_seed(seed)
    across = within = 0.0
    for digit in range(max(count - 1, 0).bit_length()):
        for chosen in ((numbers >> digit & 1).bool(), ~(numbers >> digit & 1).bool()):
            direction = torch.randn(packed.shape, generator=generator, dtype=torch.float64).to(packed)
            sent = packing.unpack(torch.where(chosen.unsqueeze(-1), direction, 0.0))
            product = evaluation.transposed(tuple(leaves(sent)))
            arrived = norm(packing.pack(rebuild(z, iter(product)))).to(widest(packed.device))
            reached = ~chosen & (arrived > 0)
            coupled |= reached
            if bool(reached.any()):
                across = max(across, float(torch.linalg.vector_norm(arrived[~chosen])))
            within = max(within, float(torch.linalg.vector_norm(arrived[chosen])))
    return Coupling(coupled, across / within if within > 0 else across)
