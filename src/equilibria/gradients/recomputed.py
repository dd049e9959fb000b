"""An evaluation whose graph keeps its argument alone (activation checkpointing: Chen et al. 2016, arXiv:1604.06174).

What autograd would save is dropped, and computed again when a backward pass first asks: once, for all products with the
Jacobian. PyTorch's own checkpoints do so for every product, and an adjoint solve is dozens of them.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from equilibria.devices import Autocast
from equilibria.solvers import Map, State
from equilibria.solvers.state import leaves, leaves_as, rebuild

# In a product with a Jacobian.
_ROUNDINGS = 4.0


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
    """One evaluation of a map, with a graph that keeps the argument alone: `Recomputed.value(f, z)`.

    What is computed again stays until autograd frees the graph, as what any graph saves.

    Args:
        f: the map, which must give the same value again.
        z: its argument.
    Attributes:
        value: `f(z)`.
    """

    def __init__(self, f: Map, z: State) -> None:
        self._f, self._z, self._rounding = f, z, attainable(leaves(z))
        self._autocast = Autocast(next(leaves(z)))
        self._keeper = Keep.of(*leaves(z))  # for hooks that count what is saved
        self._count = 0
        self._tensors: list[Tensor] | None = None
        self._expected: tuple[Tensor, ...] = ()

    @classmethod
    def value(cls, f: Map, z: State) -> State:
        """`f(z)`. Nothing that its graph holds on to holds on to it: that would be a circle, which nobody collects."""
        evaluation = cls(f, z)
        with torch.enable_grad(), saved_tensors_hooks(evaluation._drop, evaluation._give):
            value = f(z)
        evaluation._expected = tuple(leaf.detach() for leaf in leaves_as(z, value))
        return value

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
        if len(found) != self._count:
            raise RuntimeError(_CHANGED)
        _check_same(self._expected, leaves_as(z, value), self._rounding)
        return found


def verify(f: Map, z: State, value: State) -> None:
    """Has a backward pass that begins at `value = f(z)` evaluate once more first: a checkpoint of PyTorch's repeats
    evaluations and does not look whether they are what they were."""
    rounding, autocast = attainable(leaves(z)), Autocast(next(leaves(z)))
    argument = rebuild(z, (leaf.detach().requires_grad_(leaf.requires_grad) for leaf in leaves(z)))
    expected = tuple(leaf.detach() for leaf in leaves_as(z, value))
    versions = [leaf._version for leaf in expected]
    verified = False

    def look(_: Tensor) -> None:
        nonlocal verified
        if not verified and versions == [leaf._version for leaf in expected]:  # one that was written to tells nothing
            with torch.enable_grad(), autocast.again():  # solves inside have other values without gradients
                _check_same(expected, leaves_as(argument, f(argument)), rounding)
        verified = True

    for leaf in leaves(value):
        if leaf.requires_grad:
            leaf.register_hook(look)


_CHANGED = (
    "the map has another value in the backward pass than in the forward pass, so that its gradient would be wrong; "
    "change weights and inputs after the backward pass, or set checkpoint=False"
)


def _check_same(expected: Iterable[Tensor], found: Iterable[Tensor], rounding: float) -> None:
    if not all(_alike(a, b, rounding) for a, b in zip(expected, found, strict=True)):
        raise RuntimeError(_CHANGED)


def attainable(inputs: Iterable[Tensor]) -> float:
    """A few roundings of a product, in the coarsest arithmetic involved."""
    inputs = tuple(inputs)
    device = inputs[0].device.type
    dtypes = {leaf.dtype for leaf in inputs}
    if torch.is_autocast_enabled(device):
        dtypes.add(torch.get_autocast_dtype(device))
    return _ROUNDINGS * max(torch.finfo(dtype.to_real()).eps for dtype in dtypes)


def _never(_: None) -> Tensor:
    raise AssertionError("what is computed again has a graph that nobody walks")


@torch.no_grad()
def _alike(expected: Tensor, found: Tensor, rounding: float) -> bool:
    """Whether two values are the same but for the order of sums, which accelerators do not fix."""
    if torch.equal(expected, found):
        return True
    difference = torch.linalg.vector_norm((expected - found).nan_to_num())
    return bool(difference <= rounding * torch.linalg.vector_norm(expected.nan_to_num()))
