"""What a method is given at each step: the latest measured iterate, and the map with a count of its applications."""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from equilibria.solvers.mapped import InTransforms, plain
from equilibria.solvers.state import Packing

Map = Callable[[Any], Any]
"""A map from states to states of the same structure; the solver need not know it."""


@cache
def _load_forward_rules() -> None:
    """Torch loads its forward-mode rules at their first use, which triggers a deprecation warning of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.func.jvp(torch.neg, (torch.zeros(()),), (torch.zeros(()),))


class CountedMap:
    """The map on packed iterates `(*groups, features)`, and the budget of its applications.

    Beyond the one evaluation that measures each iterate, a step asks for more with `reserve`. They are charged in full,
    used or not: how many are used may depend on other samples of the batch, and how far the budget reaches must not.

    Attributes:
        calls: applications made; a Jacobian-vector product is one.
        charged: applications made or reserved.
        pack, unpack: from states to packed tensors and back.
    """

    def __init__(self, f: Map, packing: Packing, limit: int, check_every: int) -> None:
        self._f, self._limit, self._check_every = f, limit, check_every
        self.calls = self.charged = 0
        self._looked_at = 0
        self.packed_by(packing)

    def packed_by(self, packing: Packing) -> None:
        """Use `packing` from now on."""
        self.pack, self.unpack = packing.pack, packing.unpack

    def measure(self, z: Tensor) -> Tensor:
        """`f(z)` for the solve loop: charged."""
        self.charged += 1
        return self(z)

    def __call__(self, z: Tensor) -> Tensor:
        """`f(z)` within a step: reserve it first."""
        self.calls += 1
        return self._apply(z)

    def derivative(self, z: Tensor, direction: Tensor) -> Tensor:
        """`f'(z) · direction` by forward-mode differentiation, which may raise RuntimeError: reserve it first."""
        _load_forward_rules()
        # Forward mode writes tangents in its argument's layout: an expanded start has no room for them.
        with self._f.within() if isinstance(self._f, InTransforms) else nullcontext():
            product = plain(torch.func.jvp(self._apply, (z.contiguous(),), (direction.contiguous(),))[1])
        self.calls += 1
        return product

    def reserve(self, wanted: int) -> int:
        """How many of the `wanted` applications a step may make; one is left to measure what it proposes."""
        granted = max(0, min(wanted, self._limit - self.charged - 1))
        self.charged += granted
        return granted

    def may_look(self) -> bool:
        """Whether to synchronise with the device now: at most once in `check_every` applications."""
        due = self.calls - self._looked_at >= self._check_every
        if due:
            self._looked_at = self.calls
        return due

    @property
    def watched(self) -> bool:
        """Whether the host may wait for the device at every application."""
        return self._check_every == 1

    @property
    def spent(self) -> bool:
        """Whether the budget is used up."""
        return self.charged >= self._limit

    @property
    def last(self) -> bool:
        """Whether one evaluation is left."""
        return self.charged == self._limit - 1

    def _apply(self, z: Tensor) -> Tensor:
        return self.pack(self._f(self.unpack(z)))


@dataclass(frozen=True)
class Point:
    """A measured iterate, `(*groups, features)`. Methods must not change these tensors.

    Attributes:
        z: the iterate, finite.
        value: `f(z)`; in groups where that is not finite, `z`.
        difference: `value − z`, the undamped residual vector; its tensor serves again for the next point.
        finite: in which groups the map's value was finite, `(*groups,)`; None where it was known to be in all.
        map: the map, for methods that apply it themselves.
        settled: which groups are of samples that have converged in all their groups, `(*groups,)`; None for none. What
            a method remembers of them should stay, so that it does not depend on how long other samples take.
    """

    z: Tensor
    value: Tensor
    difference: Tensor
    finite: Tensor | None
    map: CountedMap
    settled: Tensor | None = None

    def broken_pair(self, before: Tensor | None) -> Tensor | None:
        """Where the difference to a point with `finite = before` says nothing of the map: `(*groups, 1)`, or None."""
        known = [finite for finite in (before, self.finite) if finite is not None]
        return (~(known[0] & known[-1])).unsqueeze(-1) if known else None
