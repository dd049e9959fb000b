"""States are tensors or nested tuples, lists, dicts and dataclasses of them; solvers see `(*groups, features)`.

Packing a single floating tensor whose features are already last is a view, so the common case copies nothing.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from math import prod
from typing import Any, Literal, Self, TypeAlias

import torch
from torch import Tensor

State: TypeAlias = Any
"""A tensor or a nested tuple, list, dict or dataclass of tensors; a recursive type would reject `dict[str, Tensor]`."""
Scope = Literal["sample", "token", "prefix", "all"]
_GROUP_DIMENSIONS: dict[Scope, int] = {"all": 0, "sample": 1, "token": 2, "prefix": 2}


def leaves(state: State) -> Iterator[Tensor]:
    """The tensors of a state, in a fixed order."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, tuple | list):
        for part in state:
            yield from leaves(part)
    elif isinstance(state, dict):
        for part in state.values():
            yield from leaves(part)
    elif _is_record(state):
        for name in _names(state):
            yield from leaves(getattr(state, name))
    else:
        raise TypeError(
            f"a state is a tensor or a nested tuple, list, dict or dataclass of tensors; found {type(state).__name__}"
        )


def _is_record(state: object) -> bool:
    return is_dataclass(state) and not isinstance(state, type)


def _names(record: Any) -> list[str]:
    return [field.name for field in fields(record)]


def leaves_as(like: State, state: State) -> Iterator[Tensor]:
    """The tensors of a state in the order of `leaves(like)`; raises ValueError for another structure than that of
    `like`."""
    if isinstance(like, Tensor) and isinstance(state, Tensor):
        yield state
    elif isinstance(like, dict) and isinstance(state, dict) and like.keys() == state.keys():
        for key, part in like.items():
            yield from leaves_as(part, state[key])
    elif isinstance(like, tuple | list) and isinstance(state, tuple | list) and len(like) == len(state):
        for part, found in zip(like, state, strict=True):
            yield from leaves_as(part, found)
    elif _is_record(like) and type(state) is type(like):
        for name in _names(like):
            yield from leaves_as(getattr(like, name), getattr(state, name))
    else:
        raise ValueError(
            f"the map must return the structure it is given: expected {_outline(like)}, found {_outline(state)}"
        )


def _outline(state: object) -> str:
    """One level of a structure, for messages."""
    if isinstance(state, dict):
        return f"a dict of {', '.join(map(repr, state))}"
    return f"{type(state).__name__} of {len(state)}" if isinstance(state, tuple | list) else type(state).__name__


def rebuild(like: State, tensors: Iterator[Tensor]) -> State:
    """A state of the structure and types of `like` from tensors in the order of `leaves`."""
    if isinstance(like, Tensor):
        return next(tensors)
    if isinstance(like, dict):
        filled = copy.copy(like)
        for key, part in like.items():
            filled[key] = rebuild(part, tensors)
        return filled
    if _is_record(like):
        # Neither `__init__` nor `__post_init__` runs again, and frozen ones are filled too.
        filled = copy.copy(like)
        for name in _names(like):
            object.__setattr__(filled, name, rebuild(getattr(like, name), tensors))
        return filled
    if isinstance(like, list):
        return [rebuild(part, tensors) for part in like]
    parts = [rebuild(part, tensors) for part in like]
    return type(like)(*parts) if hasattr(like, "_fields") else tuple(parts)


def as_real(tensor: Tensor) -> Tensor:
    """A tensor whose complex numbers, if any, are pairs of reals, along a last dimension."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def detach(state: State) -> State:
    """The same state, cut from the graph."""
    return rebuild(state, (leaf.detach() for leaf in leaves(state)))


def fitting(state: State, scope: Scope) -> Scope:
    """`scope`, or `"all"` for a state whose tensors do not share the leading dimensions that it groups by."""
    dimensions, shapes = _GROUP_DIMENSIONS[scope], [leaf.shape for leaf in leaves(state)]
    shared = all(len(shape) >= dimensions and shape[:dimensions] == shapes[0][:dimensions] for shape in shapes)
    return scope if shared else "all"


@dataclass(frozen=True)
class Packing:
    """How a state becomes one tensor `(*groups, features)` in the solver's arithmetic, and back.

    Half-precision states are solved in float32; float64 stays float64. A complex number is a pair of reals.

    Attributes:
        like: a state of the structure, shapes and dtypes.
        group_dimensions: leading dimensions that number the groups; 0 where the whole state is one, `(1, features)`.
        units: what one packed unit of each leaf stands for, powers of two, `(*groups, leaves)`; None for one.
    """

    like: State
    group_dimensions: int
    units: Tensor | None = None

    @classmethod
    def of(cls, state: State, scope: Scope) -> Self:
        """The packing of `state` for groups of `scope`; raises ValueError where its tensors do not allow it."""
        dimensions = _GROUP_DIMENSIONS[scope]
        tensors = list(leaves(state))
        if not tensors:
            raise ValueError("the state holds no tensor; pass at least one to z0")
        leading = tensors[0].shape[:dimensions]
        for leaf in tensors:
            if not (leaf.is_floating_point() or leaf.is_complex()):
                raise ValueError(
                    f"states are floating point or complex; found {leaf.dtype} of shape {tuple(leaf.shape)}"
                )
            if leaf.dim() < dimensions or leaf.shape[:dimensions] != leading:
                count = f"{dimensions} leading dimension{'s' if dimensions > 1 else ''}"
                raise ValueError(
                    f'scope "{scope}" needs {count} shared by every tensor of the state, found shapes '
                    f'{[tuple(t.shape) for t in tensors]}; add them, or take scope="all"'
                )
        return cls(state, dimensions)

    @cached_property
    def arithmetic(self) -> torch.dtype:
        """The dtype the solver computes in."""
        widest = torch.float32
        for leaf in leaves(self.like):
            widest = torch.promote_types(widest, leaf.dtype.to_real())
        return widest

    def pack(self, state: State) -> Tensor:
        """`(*groups, features)`; raises ValueError for a state that is not shaped like `like`."""
        like, found = list(leaves(self.like)), list(leaves_as(self.like, state))
        if [leaf.shape for leaf in like] != [leaf.shape for leaf in found]:
            raise ValueError(
                f"the map must return the shapes it is given: expected {[tuple(t.shape) for t in like]}, "
                f"found {[tuple(t.shape) for t in found]}"
            )
        if [leaf.is_complex() for leaf in like] != [leaf.is_complex() for leaf in found]:
            raise ValueError(
                f"the map must return complex numbers for complex ones and real for real: expected "
                f"{[t.dtype for t in like]}, found {[t.dtype for t in found]}; start from z0.to(torch.complex64), or "
                "return the real part"
            )
        groups = like[0].shape[: self.group_dimensions] or (1,)
        # An explicit feature count, since -1 is ambiguous for an empty batch.
        flat = [
            as_real(leaf).reshape(*groups, size).to(self.arithmetic)
            for leaf, size in zip(found, self.sizes, strict=True)
        ]
        return self.scaled(flat[0] if len(flat) == 1 else torch.cat(flat, dim=-1))

    @cached_property
    def sizes(self) -> list[int]:
        """Features of each leaf of a group."""
        return [self._features(leaf) for leaf in leaves(self.like)]

    def scaled(self, packed: Tensor) -> Tensor:
        """From units of one to those of this packing."""
        return packed if self._wide is None else packed / self._wide

    def plain(self, packed: Tensor) -> Tensor:
        """From units of this packing to those of one."""
        return packed if self._wide is None else packed * self._wide

    @cached_property
    def _wide(self) -> Tensor | None:
        """The units of each feature, `(*groups, features)`, or `(*groups, 1)` of a lone leaf."""
        if self.units is None or self.units.shape[-1] == 1:
            return self.units
        parts = zip(self.units.split(1, dim=-1), self.sizes, strict=True)
        return torch.cat([unit.expand(*unit.shape[:-1], size) for unit, size in parts], dim=-1)

    def _features(self, leaf: Tensor) -> int:
        """Of a group; `Size.numel` would make a dynamic length of a traced program a constant."""
        return prod(leaf.shape[self.group_dimensions :]) * (2 if leaf.is_complex() else 1)

    def rounded(self, packed: Tensor) -> Tensor:
        """An iterate as the map sees it, rounded to the dtypes of the original; itself where nothing is rounded."""
        exact = all(leaf.dtype.to_real() == packed.dtype for leaf in leaves(self.like))
        return packed if exact else self.pack(self.unpack(packed))

    def unpack(self, packed: Tensor) -> State:
        """The state, in the dtypes of the original."""
        like, packed = list(leaves(self.like)), self.plain(packed)
        parts = packed.split(self.sizes, dim=-1) if len(like) > 1 else (packed,)
        return rebuild(self.like, (_shaped(part, leaf) for part, leaf in zip(parts, like, strict=True)))


def _shaped(part: Tensor, like: Tensor) -> Tensor:
    if like.is_complex():
        return torch.view_as_complex(part.reshape(*like.shape, 2).to(like.dtype.to_real()).contiguous())
    return part.reshape(like.shape).to(like.dtype)
