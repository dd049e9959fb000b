"""Broyden's good method (Broyden 1965) with bounded history, per group, in compact form.

For `g(z) = f(z) − z` started from the Jacobian `−I`, the pairs `sᵢ = Δz`, `yᵢ = Δg` of the last steps give the inverse
(Byrd, Nocedal and Schnabel 1994) `−I + (Y + S) K⁻¹ Sᵀ` with `Kᵢⱼ = ⟨sᵢ, yⱼ⟩ + [i > j] ⟨sᵢ, sⱼ⟩`. As `Y + S` are the
differences `ΔF` of the map's values, the quasi-Newton step is `f(z) − ΔF K⁻¹ Sᵀ g(z)`. In this form the oldest pair
can be dropped exactly, and in scope `"prefix"` every inner product runs over a token and its predecessors, so that no
token sees a later one.

Steps and differences alternate in one tensor, so that all inner products of a step are one matrix product.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from equilibria.devices import widest
from equilibria.ranges import whole
from equilibria.solvers.base import Solver
from equilibria.solvers.point import Point
from equilibria.solvers.residual import Groups

# Slots at first: most solves need no more.
_SLOTS = 16
# Two pairs a feature end the method on an affine map (Gay 1979); on others, many more of few features are of places
# that the iterates have long left.
_PAIRS_PER_FEATURE = 3
# Armijo's share of the decrease that the residual's linear model promises (Nocedal and Wright 2006, section 3.1).
_SUFFICIENT = 1e-4


class _Pairs:
    """The last pairs in a ring of up to `limit` slots, the matrix `K` in the order of the slots, and the latest point.
    `K` is scaled to unit steps; where a step has no length (a frozen group), its row and column are the identity's.
    Groups that are settled lose no pair to those that go on."""

    def __init__(self, z: Tensor, limit: int) -> None:
        self.limit = limit
        groups, features = z.shape[:-1], z.shape[-1]
        slots = min(limit, _SLOTS)
        self.rows = z.new_empty(*groups, 2 * slots, features)
        self.latest = z.new_empty(*groups, 3, features)
        self.matrix = torch.zeros(*groups, slots, slots, dtype=widest(z.device), device=z.device)
        self.scale = z.new_zeros(*groups, slots)
        self.pairs = 0
        self.point: Point | None = None
        self.search: _LineSearch | None = None

    @property
    def filled(self) -> int:
        return min(self.pairs, self.limit)

    @property
    def steps(self) -> Tensor:
        """`(*groups, filled, features)`, as are the differences of values."""
        return self.rows[..., 0 : 2 * self.filled : 2, :]

    @property
    def value_differences(self) -> Tensor:
        return self.rows[..., 1 : 2 * self.filled : 2, :]

    def push(self, point: Point, groups: Groups) -> Tensor | None:
        """Adds the latest pair in place of the oldest; returns `Sᵀ g(z)`, scaled, `(*groups, filled)`."""
        before, self.point = self.point, point
        step, change, residual = self.latest.unbind(-2)
        if before is None:
            residual.copy_(point.difference)
            return None
        slot, full = self.pairs % self.limit, self.pairs >= self.limit
        if slot == self.scale.shape[-1]:
            self._grow()
        self.pairs += 1
        torch.sub(point.z, before.z, out=step)
        torch.sub(point.difference, residual, out=change)
        residual.copy_(point.difference)
        pair = self.rows[..., 2 * slot : 2 * slot + 2, :]
        settled = point.settled
        kept = settled if full else None
        evicted = None if kept is None else pair.clone()
        value_difference = torch.sub(point.value, before.value, out=pair[..., 1, :])
        for broken in (point.broken_pair(before.finite), None if settled is None else settled.unsqueeze(-1)):
            if broken is not None:
                for part in (step, change, value_difference):
                    part.masked_fill_(broken, 0.0)
        pair[..., 0, :] = step
        if kept is not None and evicted is not None:
            pair.copy_(torch.where(kept[..., None, None], evicted, pair))
        products = groups.products(self.latest, self.rows[..., : 2 * self.filled, :])
        length = products[..., 0, 2 * slot]
        tiny = torch.finfo(length.dtype).tiny
        empty = length <= tiny
        _write(self.scale[..., slot], length.clamp(min=tiny).rsqrt().masked_fill_(empty, 0.0), kept)
        scale = self.scale[..., : self.filled]
        products = products.unflatten(-1, (-1, 2)) * scale.unsqueeze(-1).unsqueeze(-3)
        # The newest is younger than all others: its row holds ⟨s, y⟩ + ⟨s, s⟩, which is ⟨s, ΔF⟩; its column ⟨s, y⟩.
        newest = scale[..., slot].unsqueeze(-1)
        _write(self.matrix[..., slot, : self.filled], products[..., 0, :, 1] * newest, kept)
        _write(self.matrix[..., : self.filled, slot], products[..., 1, :, 0] * newest, kept)
        self.matrix[..., slot, slot].masked_fill_(empty if kept is None else empty & ~kept, 1.0)
        return products[..., 2, :, 0]

    def _grow(self) -> None:
        """Double the slots, up to `limit`; all that there are hold pairs, in the order of their ages."""
        more = min(self.limit, 2 * self.filled) - self.filled
        self.rows = torch.cat([self.rows, torch.empty_like(self.rows[..., : 2 * more, :])], dim=-2)
        self.matrix = torch.nn.functional.pad(self.matrix, (0, more, 0, more))
        self.scale = torch.nn.functional.pad(self.scale, (0, more))

    def weights(self, target: Tensor, transposed: bool = False) -> Tensor:
        """`K⁻¹ target` or `K⁻ᵀ target`, `(*groups, filled)`; zero (plain iteration) where `K` is singular."""
        matrix = self.matrix[..., : self.filled, : self.filled]
        if transposed:
            matrix = matrix.mT
        gamma, information = torch.linalg.solve_ex(matrix, target.to(matrix.dtype))
        usable = (information == 0) & torch.isfinite(gamma.sum(dim=-1))
        gamma = torch.where(usable.unsqueeze(-1), gamma, 0.0)
        return gamma.to(target.dtype) * self.scale[..., : self.filled]


def _write(place: Tensor, new: Tensor, kept: Tensor | None) -> None:
    """Fills a place of the ring, except of the groups that keep what is there."""
    if kept is not None:
        new = torch.where(kept if new.dim() == kept.dim() else kept.unsqueeze(-1), place, new)
    place.copy_(new)


@dataclass
class _LineSearch:
    """Per group: where the search began, along what, the squared residual there, and the share of the step taken."""

    z: Tensor
    direction: Tensor
    merit: Tensor
    length: Tensor


@dataclass(frozen=True, kw_only=True)
class Broyden(Solver):
    """Broyden's good method. Reaches fixed points of maps that do not contract, at a higher cost per evaluation.

    Args:
        history: pairs kept, at least 1 and no more than three for each feature; the oldest is dropped. On an affine map
            of `n` features the method ends within `2n` steps (Gay 1979) where it keeps all pairs; dropping them costs
            most on maps that rotate.
        halvings: how often a group's step is halved where it does not lower the group's residual enough (Armijo's
            rule), before it is taken anyway; each costs that group an evaluation. 0 takes every step in full.
    """

    history: int = 32
    halvings: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(1, history=self.history)
        whole(0, halvings=self.halvings)

    def init(self, z: Tensor, groups: Groups) -> _Pairs:
        useful = max(1, _PAIRS_PER_FEATURE * z.shape[-1])
        return _Pairs(z, min(self.history, self.max_evaluations, useful))

    def step(self, memory: _Pairs, point: Point, groups: Groups) -> tuple[Tensor, _Pairs]:
        target = memory.push(point, groups)
        proposal = point.value
        if target is not None:
            gamma = memory.weights(target)
            proposal = point.value - (gamma.unsqueeze(-2) @ memory.value_differences).squeeze(-2)
        if self.halvings:
            proposal, memory.search = self._search(memory.search, point, proposal, groups)
        return proposal, memory

    def transposed_inverse(self, pairs: _Pairs, g: Tensor, groups: Groups) -> Tensor:
        """`g − S K⁻ᵀ ΔFᵀ g`: what the pairs take for the solution of `v = Jᵀ v + g` (SHINE, arXiv:2106.00553).

        It is the exact transpose of the linear map that `step` applies to a residual; in scope `"prefix"`, where a
        token's coefficients come from its predecessors, the transpose collects from its successors.
        """
        if not pairs.filled:
            return g.clone()
        target = (pairs.value_differences @ g.unsqueeze(-1)).squeeze(-1)
        gamma = pairs.weights(target * pairs.scale[..., : pairs.filled], transposed=True)
        if groups.scope == "prefix":
            gamma = gamma.flip(1).cumsum(dim=1).flip(1)
        return g - (gamma.unsqueeze(-2) @ pairs.steps).squeeze(-2)

    def _search(
        self, search: _LineSearch | None, point: Point, proposal: Tensor, groups: Groups
    ) -> tuple[Tensor, _LineSearch]:
        """Per group: start along the new step where the latest point is good enough, else go back half way. The pairs
        of rejected points serve the next step too."""
        merit = groups.dot(point.difference, point.difference)
        direction = proposal - point.z
        if search is None:
            return proposal, _LineSearch(point.z, direction, merit, torch.ones_like(merit))
        enough = merit <= (1.0 - _SUFFICIENT * search.length).square() * search.merit
        accepted = enough | (search.length <= 0.5**self.halvings)
        if point.finite is not None:
            accepted = accepted & point.finite
        wide = accepted.unsqueeze(-1)
        length = torch.where(accepted, 1.0, 0.5 * search.length)
        search = _LineSearch(
            torch.where(wide, point.z, search.z),
            torch.where(wide, direction, search.direction),
            torch.where(accepted, merit, search.merit),
            length,
        )
        return torch.where(wide, proposal, search.z + length.unsqueeze(-1) * search.direction), search
