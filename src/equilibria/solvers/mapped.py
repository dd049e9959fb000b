"""Solves inside `torch.func` transforms: on plain tensors, with the dimensions that `vmap` maps over in the batch.

A transform wraps tensors, one level each. A solver reads its residuals, which a mapped tensor does not allow, and needs
no graph: its iterates are unwrapped, and only the map sees them wrapped.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import takewhile
from math import prod
from typing import TYPE_CHECKING, Any

import torch
import torch._C._functorch as transforms
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack, temporarily_restore_interpreter_stack

from equilibria.solvers.state import State, leaves, leaves_as, rebuild

if TYPE_CHECKING:
    from equilibria.solvers.solution import Iterate

_Kind = transforms.TransformType
_PER_GROUP = ("value", "proposal", "residual", "group_evaluations", "converged", "astray")


def active() -> bool:
    """Whether the caller is inside a transform of `torch.func`."""
    return transforms.peek_interpreter_stack() is not None


def _levels(*kinds: Any) -> list[int]:
    stack = transforms.get_interpreter_stack() or []
    return [interpreter.level() for interpreter in stack if interpreter.key() in kinds]


def differentiated() -> int | None:
    """The level of the innermost reverse-mode transform around the caller, if any."""
    levels = _levels(_Kind.Grad)
    return levels[-1] if levels else None


def mapped_last() -> list[int]:
    """The levels of `vmap` between the caller and any other transform."""
    stack = reversed(transforms.get_interpreter_stack() or [])
    return [interpreter.level() for interpreter in takewhile(lambda entry: entry.key() == _Kind.Vmap, stack)][::-1]


def plain(tensor: Tensor) -> Tensor:
    """The tensor without any wrapping, mapped dimensions first and without a graph."""
    return _taken_out(tensor, {}, 1, transforms.maybe_current_level() or 0) if active() else tensor


def asking(tensor: Tensor) -> Tensor:
    """A detached tensor as a leaf of the graph that the innermost transform records."""
    level = differentiated()
    if level is not None and transforms.maybe_get_level(tensor) < level:
        tensor = transforms._wrap_for_grad(tensor, level)
    allowed = transforms.get_inplace_requires_grad_allowed()
    transforms.set_inplace_requires_grad_allowed(True)
    try:
        return tensor.requires_grad_()
    finally:
        transforms.set_inplace_requires_grad_allowed(allowed)


def _taken_out(tensor: Tensor, found: dict[int, int], lowest: int, highest: int) -> Tensor:
    """The tensor without its wrappings of levels `lowest` to `highest`; sizes of mapped dimensions go into `found`."""
    while lowest <= (level := transforms.maybe_get_level(tensor)) <= highest:
        if transforms.is_batchedtensor(tensor):
            dimension = transforms.maybe_get_bdim(tensor)
            tensor = transforms.get_unwrapped(tensor).movedim(dimension, 0)
            found[level] = tensor.shape[0]
        else:
            tensor = transforms.get_unwrapped(tensor)
    return tensor


@contextmanager
def _below(level: int) -> Iterator[None]:
    """Leaves the transforms from a level on, which would wrap whatever is computed."""
    popped = []
    try:
        while (transforms.maybe_current_level() or 0) >= level:
            popped.append(transforms.pop_dynamic_layer_stack())
        yield
    finally:
        while popped:
            transforms.push_dynamic_layer_stack(popped.pop())


@dataclass(frozen=True)
class Mapping:
    """The dimensions that a state is mapped over: level and size of each, outermost first."""

    sizes: dict[int, int]
    lowest: int
    highest: int

    @classmethod
    def of(cls, f: Callable[[Any], Any], z0: State, lowest: int, highest: int) -> Mapping:
        """For a state and the value of a map there, which is evaluated once."""
        found: dict[int, int] = {}
        with torch.no_grad():
            for leaf in (*leaves(z0), *leaves_as(z0, f(z0))):
                _taken_out(leaf, found, lowest, highest)
        return cls(dict(sorted(found.items())), lowest, highest)

    def flat(self, tensor: Tensor) -> Tensor:
        """`(B, ...)`, mapped, as `(count · B, ...)`, `count` the product of the sizes."""
        found: dict[int, int] = {}
        tensor = _taken_out(tensor, found, self.lowest, self.highest)
        if not self.sizes:
            return tensor
        with _below(self.lowest):
            for place, (level, size) in enumerate(self.sizes.items()):
                if level not in found:
                    tensor = tensor.unsqueeze(place)
                    tensor = tensor.expand(*tensor.shape[:place], size, *tensor.shape[place + 1 :])
            return tensor.flatten(0, len(self.sizes))

    def mapped(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """The inverse of `flat`, of a dimension; where that has no such size, the tensor stays as it is."""
        count = prod(self.sizes.values())
        if not self.sizes or tensor.dim() <= dim or tensor.shape[dim] % count:
            return tensor
        if transforms.maybe_get_level(tensor) >= min(self.sizes):
            raise NotImplementedError(
                "NewtonKrylov differentiates the map in forward mode, which does not support torch.func.vmap "
                "around the solve; take Anderson, Broyden or Picard"
            )
        with _below(self.lowest):
            tensor = tensor.unflatten(dim, (*self.sizes.values(), tensor.shape[dim] // count))
            places = range(len(self.sizes))
            tensor = tensor.movedim([dim + place for place in places], [*places])
        for level in self.sizes:
            tensor = transforms._add_batch_dim(tensor, 0, level)
        return tensor

    def flat_state(self, state: State) -> State:
        return rebuild(state, (self.flat(leaf) for leaf in leaves(state)))

    def mapped_state(self, state: State) -> State:
        return rebuild(state, (self.mapped(leaf) for leaf in leaves(state)))

    def mapped_trace(self, trace: Tensor | None) -> Tensor | None:
        """A trace `(evaluations, *groups)`, mapped over the first dimension of the groups."""
        return None if trace is None else self.mapped(trace, dim=1)

    def flat_map(self, f: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """The map on flat states."""
        return lambda z: self.flat_state(f(self.mapped_state(z)))


@dataclass(frozen=True)
class InTransforms:
    """A map that is applied within the transforms around its solver."""

    f: Callable[[Any], Any]
    stack: list[Any]

    def within(self) -> AbstractContextManager[object]:
        """A context within the transforms."""
        return nullcontext() if active() else temporarily_restore_interpreter_stack(self.stack)

    def __call__(self, z: State) -> State:
        with self.within():
            return self.f(z)


def on_plain_tensors(solve: Callable[..., Iterate]) -> Callable[..., Iterate]:
    """Gives a solver's `solve` plain tensors inside transforms too; one more evaluation finds out what is mapped."""

    @functools.wraps(solve)
    def solved(self: Any, f: Callable[[Any], Any], z0: State, *args: Any, **options: Any) -> Iterate:
        if not active():
            return solve(self, f, z0, *args, **options)
        highest = transforms.maybe_current_level() or 0
        some = bool(_levels(_Kind.Vmap))
        mapping = Mapping.of(f, z0, 1, highest) if some else Mapping({}, 1, highest)
        if mapping.sizes and self.scope == "all":
            raise NotImplementedError('scope="all" does not support torch.func.grad inside vmap; take scope="sample"')
        start = mapping.flat_state(z0)
        with temporarily_clear_interpreter_stack() as stack:
            iterate = solve(self, InTransforms(mapping.flat_map(f), stack), start, *args, **options)
            if some:
                iterate.count_probe()
        tensors = {name: getattr(iterate, name) for name in _PER_GROUP}
        return replace(
            iterate,
            **{name: None if part is None else mapping.mapped(part) for name, part in tensors.items()},
            iterates={number: mapping.mapped_state(z) for number, z in iterate.iterates.items()},
            gauge=None if mapping.sizes else iterate.gauge,
            group_trace=mapping.mapped_trace(iterate.group_trace),
        )

    return solved


def check_legacy(tensors: tuple[Tensor, ...]) -> None:
    """Raises NotImplementedError for the mapping of `torch.autograd`, which predates `torch.func`."""
    if any(transforms.is_legacy_batchedtensor(tensor) for tensor in tensors):
        raise NotImplementedError(
            "a solve does not support is_grads_batched=True or jacobian(..., vectorize=True); take torch.func.jacrev, "
            "or leave them False"
        )
