"""What every cell offers a depth and a model.

`f = cell.bind(inputs, past)` computes everything that does not depend on `z`, once per solve: effective weights, the
injection, keys and values of the past, dropout masks. `f` is a map of the state alone, `f(z)`, which is what solvers,
depths and audits see; `f.remember(z)` is what the next segment needs of it. A model continues with `readout` of the
state, which may hold more than that.

A segment sees the past in one of two forms. A `Memory` holds states, through which a gradient may flow and which are
projected anew under weights that change. A `CacheView` holds what the same cell made of them, for inference.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from equilibria.cells.cache import CacheView, Entry
from equilibria.nn.attention import Place
from equilibria.nn.hooks import unhooked


@dataclass(frozen=True)
class Memory:
    """What one segment hands to the next: per-token states of its cells, each `(B, M, ·)`, the last `M` tokens."""

    states: tuple[Tensor, ...]

    @property
    def length(self) -> int:
        """Remembered tokens."""
        return self.states[0].shape[1] if self.states else 0

    def check(self, rows: int) -> None:
        """Raises ValueError unless it has the tokens' batch size: some cells would broadcast it."""
        if self.states and len(self.states[0]) != rows:
            raise ValueError(f"the memory has batch size {len(self.states[0])}, the tokens have {rows}")

    def flatten(self) -> list[Tensor]:
        """The tensors, for a checkpoint."""
        return list(self.states)

    @classmethod
    def unflatten(cls, tensors: Sequence[Tensor]) -> Memory:
        """The inverse of `flatten`."""
        return cls(tuple(tensors))

    def select(self, rows: Tensor) -> Memory:
        """The memory of these rows, in this order; rows may repeat."""
        return Memory.gathered([(self, rows)])

    @classmethod
    def gathered(cls, parts: Sequence[tuple[Memory, Tensor]]) -> Memory:
        """Rows, `(R,)` integers, of several memories as one; all remember equally many tokens."""
        chosen = ([state.index_select(0, rows) for state in memory.states] for memory, rows in parts)
        return cls(tuple(torch.cat(states) for states in zip(*chosen, strict=True)))

    @staticmethod
    def join(old: Memory | None, new: Sequence[Tensor], limit: int, detach: bool = True) -> Memory | None:
        """The last `limit` tokens of the old memory followed by the new states, cut from the graph with `detach`; None
        for a limit of 0."""
        if limit == 0:
            return None
        before = old.states if old is not None else tuple(state[:, :0] for state in new)
        # Cut before joining, so that little is copied and no view keeps a long segment alive.
        parts = (
            (past[:, max(0, past.shape[1] + state.shape[1] - limit) :], state[:, -limit:])
            for past, state in zip(before, new, strict=True)
        )
        joined = (torch.cat(pair, dim=1) for pair in parts)
        return Memory(tuple(state.detach() if detach else state for state in joined))

    @staticmethod
    def split(memory: Memory | None, sizes: Sequence[int]) -> list[Memory | None]:
        """The parts of a memory that several cells share, by the number of tensors of each; None for a part of none."""
        if memory is None:
            return [None] * len(sizes)
        if len(memory.states) != sum(sizes):
            raise ValueError(
                f"the memory has {len(memory.states)} tensors and the cells of this model remember {sum(sizes)}; "
                f"it belongs to another model"
            )
        parts = iter(memory.states)
        return [Memory(tuple(islice(parts, size))) if size else None for size in sizes]


Past: TypeAlias = Memory | CacheView | None
"""What a cell may see of the tokens before a segment."""


def furthest(reaches: Iterable[int | None]) -> int | None:
    """The largest of some cells' reaches."""
    known = list(reaches)
    return None if None in known else max((reach for reach in known if reach is not None), default=None)


def shared_columns(cells: Iterable[Cell]) -> int | None:
    """The columns of the grid that some cells read; None where none knows of one. A ValueError for two grids."""
    known = {cell.columns for cell in cells} - {None}
    if len(known) > 1:
        raise ValueError(f"cells of one model read one grid; found columns {sorted(filter(None, known))}")
    return next(iter(known), None)


def place_of(past: Past) -> Place:
    """Where the segment after it stands."""
    if isinstance(past, CacheView):
        return past.place
    return Place() if past is None else Place(past.length)


SomeCell = TypeVar("SomeCell", bound="Cell")


@dataclass(frozen=True, eq=False)
class BoundMap(ABC, Generic[SomeCell]):
    """A cell with the inputs and the past of a segment: the map `z ↦ f(z)` of one solve, `(B, L, ·) → (B, L, ·)`."""

    cell: SomeCell

    def __call__(self, z_BLD: Tensor) -> Tensor:
        """One evaluation: by way of the module, whose hooks and whose compilation act here."""
        return self.cell(z_BLD, self)

    @property
    def shortest(self) -> Callable[[Tensor], Tensor]:
        """What evaluates the map with the fewest calls: itself, where the module is compiled, or has hooks or a forward
        pass of its own."""
        return self.evaluate if type(self.cell).forward is Cell.forward and unhooked(self.cell) else self

    @abstractmethod
    def evaluate(self, z_BLD: Tensor) -> Tensor:
        """The value of the map."""

    @abstractmethod
    def remember(self, z_BLD: Tensor, latest: bool = False) -> tuple[Tensor, ...]:
        """The states a later segment attends to, per token of this one: `remembered` tensors `(B, L, ·)`. `latest` says
        that the latest evaluation was made at `z`, so that its results may be reused."""

    def over(self, view: CacheView) -> BoundMap[SomeCell]:
        """The same map over another part of a cache: for the next application of an explicit depth."""
        raise NotImplementedError

    def at(self, row: int, tokens_T: Tensor) -> BoundMap[SomeCell]:
        """The map at some tokens of a row of a segment over a cache, with states `(1, T, ·)`, in evaluation mode. It
        writes to their slots, and sees those of all others as they are. Raises ValueError unless the cell is
        separable."""
        name = type(self.cell).__name__
        raise ValueError(f"{name} evaluates all tokens of a segment together; none can leave it early")

    def keep(self, z_BLD: Tensor, value_BLD: Tensor) -> None:
        """Fill the segment's slots of the cache from the latest evaluation, `z ↦ value`, unless that wrote to them."""


class Cell(nn.Module, ABC):
    """One map of states `(B, L, ·)`.

    Your own cell sets `d_model` and defines `evaluate`, and `remember` where a later segment needs more than the state.
    One that computes anything once per solve defines `bind` instead.

    Attributes:
        d_model: features of the embedded inputs.
        layers_per_application: transformer layers that one evaluation is worth, by which an explicit twin is sized.
        remembered: how many tensors `remember` returns.
        injection: whether the inputs enter every evaluation. If not, a solve starts from them, as in an ordinary stack
            of layers.
        causal: whether no token sees a later one. If not, a segment is read at once: it has no memory and no cache.
        columns: of the grid whose cells, row by row, are the tokens; None where positions know of no grid.
    """

    d_model: int
    layers_per_application: int = 1
    remembered: int = 1
    injection: bool = True
    causal: bool = True
    columns: int | None = None

    def bind(self, inputs_BLD: Tensor, past: Past = None) -> BoundMap[Any]:
        """The map of one solve, given the embedded inputs of a segment and what it sees of the tokens before it."""
        return _Plain(self, inputs_BLD, past)

    def evaluate(self, z_BLD: Tensor, inputs_BLD: Tensor, past: Past, /) -> Tensor:
        """One evaluation of a cell that does not define `bind`."""
        raise NotImplementedError(f"{type(self).__name__} defines neither evaluate nor bind")

    def remember(self, z_BLD: Tensor, inputs_BLD: Tensor, /) -> tuple[Tensor, ...]:
        """The states a later segment attends to, of a cell that does not define `bind`; the state itself."""
        return (z_BLD,)

    def forward(self, z_BLD: Tensor, bound: BoundMap[Any]) -> Tensor:
        """One evaluation of a bound map, which is what you call: `bound(z)`."""
        return bound.evaluate(z_BLD)

    @property
    def remembers_argument(self) -> bool:
        """Whether a later segment attends to the argument of the last application, and not to its result.

        At an equilibrium they are the same. Explicit layers attend to their own input, so there the argument is exact;
        a cell with injection hands on its most advanced state.
        """
        return not self.injection

    def initial_state(self, inputs_BLD: Tensor) -> Tensor:
        """Where a solve starts: zeros like the embedded inputs, or the inputs where they are not injected."""
        return torch.zeros_like(inputs_BLD) if self.injection else inputs_BLD

    def readout(self, z: Tensor) -> Tensor:
        """What the model continues with, `(B, L, ·) → (B, L, output_size)`; the state itself, unless a cell keeps
        more."""
        return z

    @property
    def output_size(self) -> int:
        """Features of what the model continues with: `d_model`, unless one of your own differs."""
        return self.d_model

    @property
    def cached(self) -> tuple[Entry, ...]:
        """What a cache keeps of a token; raises ValueError where the cell cannot decode from a cache."""
        raise ValueError(f"{type(self).__name__} keeps nothing in a cache; give its past as a memory")

    @property
    def reach(self) -> int | None:
        """How many tokens back an evaluation looks; None for all."""
        return None

    @property
    def separable(self) -> bool:
        """Whether tokens of a segment can be evaluated apart from others, by `BoundMap.at`."""
        return False


@dataclass(frozen=True, eq=False)
class _Plain(BoundMap[Cell]):
    """The map of a cell that computes nothing beforehand."""

    inputs_BLD: Tensor
    past: Past

    def evaluate(self, z_BLD: Tensor) -> Tensor:
        return self.cell.evaluate(z_BLD, self.inputs_BLD, self.past)

    def remember(self, z_BLD: Tensor, latest: bool = False) -> tuple[Tensor, ...]:
        return self.cell.remember(z_BLD, self.inputs_BLD)
