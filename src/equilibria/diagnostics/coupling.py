"""Which groups of a state depend on each other through a map."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from equilibria.gradients.adjoint import evaluate
from equilibria.solvers import Map, Scope, State
from equilibria.solvers.residual import norm
from equilibria.solvers.state import Packing, leaves, rebuild


@dataclass(frozen=True)
class Coupling:
    """What `audit_coupling` found.

    Attributes:
        coupled: groups that other groups depend on, `(*groups,)`.
        strength: the largest norm that the derivative of some groups by others has, over that of some groups by
            themselves, along random directions; exactly 0 where nothing is coupled.
    """

    coupled: Tensor
    strength: float

    def __bool__(self) -> bool:
        return bool(self.coupled.any())


def audit_coupling(f: Map, z: State, scope: Scope = "sample", seed: int = 0) -> Coupling:
    """Find out whether the groups of a map depend on each other at `z`.

    Every pair of groups is told apart by some digit of their numbers. For each digit, random directions of those that
    have it are sent back through one evaluation: what arrives at the others came by a coupling. That is two
    vector-Jacobian products for every doubling of the number of groups, on one stored evaluation.

    A causal map does couple tokens; the solves of scopes `"token"` and `"prefix"` are made for that. For scope
    `"sample"` take `scope="all"` in the solver where this finds a coupling: batch norm in training, graph layers whose
    rows are nodes, attention over a batch.

    Args:
        f: the map, differentiable.
        z: where: a state like the solution.
        scope: what a group is.
        seed: of the directions.
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
            arrived = norm(packing.pack(rebuild(z, iter(product)))).double()
            reached = ~chosen & (arrived > 0)
            coupled |= reached
            if bool(reached.any()):
                across = max(across, float(torch.linalg.vector_norm(arrived[~chosen])))
            within = max(within, float(torch.linalg.vector_norm(arrived[chosen])))
    return Coupling(coupled, across / within if within > 0 else across)
