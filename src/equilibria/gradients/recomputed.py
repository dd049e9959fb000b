"""An evaluation whose graph keeps its argument alone (activation checkpointing: Chen et al. 2016, arXiv:1604.06174).

What autograd would save is dropped, and computed again when a backward pass first asks: once, for all products with the
Jacobian. PyTorch's own checkpoints do so for every product, and an adjoint solve is dozens of them.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from equilibria.devices import Autocast
from equilibria.solvers import Map, State
from equilibria.solvers.state import leaves, leaves_as, rebuild


class Keep(torch.autograd.Function):
    """Holds tensors as autograd holds what it saves, so that hooks see them there: in `grad_fn.saved_tensors`."""

    @staticmethod
    def forward(ctx: Any, token: Tensor, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        return token.clone()

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise AssertionError("nothing is differentiated through what is kept")

    @classmethod
    def of(cls, *tensors: Tensor) -> Tensor:
        """A tensor whose `grad_fn` holds these, without their graphs."""
        token = torch.empty(0, requires_grad=True)
        with torch.enable_grad():
            return cls.apply(token, *(tensor.detach() for tensor in tensors))


class Recomputed:
    """One evaluation of a map, with a graph that keeps the argument alone.

    What is computed again stays until autograd frees the graph, as what any graph saves.

    Args:
        f: the map, which must give the same value again.
        z: its argument.
        rounding: the relative difference that the values may have.

    Attributes:
        value: `f(z)`.
    """

    def __init__(self, f: Map, z: State, rounding: float) -> None:
        self._f, self._z, self._rounding = f, z, rounding
        self._autocast = Autocast(next(leaves(z)))
        self._keeper = Keep.of(*leaves(z))  # for hooks that count what is saved
        self._count = 0
        self._tensors: list[Tensor] | None = None
        with torch.enable_grad(), saved_tensors_hooks(self._drop, self._give):
            self.value = f(z)
        self._expected = tuple(leaf.detach() for leaf in leaves_as(z, self.value))

    def _drop(self, _: Tensor) -> int:
        self._count += 1
        return self._count - 1

    def _give(self, number: int) -> Tensor:
        if self._tensors is None:
            self._tensors = self._again()
        return self._tensors[number]

    def _again(self) -> list[Tensor]:
        """What the evaluation saves, in its order."""
        found: list[Tensor] = []

        def keep(tensor: Tensor) -> None:
            found.append(tensor.detach())

        z = rebuild(self._z, (leaf.detach().requires_grad_(leaf.requires_grad) for leaf in leaves(self._z)))
        with torch.enable_grad(), self._autocast.again(), saved_tensors_hooks(keep, _never):
            value = self._f(z)
        same = (_alike(a, b, self._rounding) for a, b in zip(self._expected, leaves_as(z, value), strict=True))
        if len(found) != self._count or not all(same):
            raise RuntimeError(
                "the map has another value in the backward pass than in the forward pass, so that its gradient would "
                "be wrong; change weights and inputs after the backward pass, or set checkpoint=False"
            )
        return found


def _never(_: None) -> Tensor:
    raise AssertionError("what is computed again has a graph that nobody walks")


@torch.no_grad()
def _alike(expected: Tensor, found: Tensor, rounding: float) -> bool:
    """Whether two values are the same but for the order of sums, which accelerators do not fix."""
    if torch.equal(expected, found):
        return True
    difference = torch.linalg.vector_norm((expected - found).nan_to_num())
    return bool(difference <= rounding * torch.linalg.vector_norm(expected.nan_to_num()))
