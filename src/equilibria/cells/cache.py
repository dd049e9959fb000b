"""What a model keeps of the tokens it has read, so that a new token is solved alone.

At a fixed point the state of a past token is final, and so are its keys and values: a cache holds those of one cell,
however often the cell was applied, in buffers with room for more. A cell gets a view that ends with the segment's own
slots; its evaluations write there, and the last one leaves what later tokens read. An explicit depth has a part for
each of its applications.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor, nn

from equilibria.nn.attention import KeysValues, KeysValuesApart, KeysValuesRoom, Place
from equilibria.ranges import whole

Entry = tuple[int, ...]
"""Sizes of what is kept of a token: `(features,)`, or with heads before it, `(heads, features)`."""

_BLOCK = 256


class Slots(NamedTuple):
    """The slots that the next token of a single row sees, one tensor for each entry; its own ones, behind them; and its
    position."""

    seen: tuple[Tensor, ...]
    own: tuple[Tensor, ...]
    position: int


@dataclass(frozen=True)
class CacheView:
    """A cell's part of a cache during one solve.

    Attributes:
        tensors: `(B, S, features)` or `(B, heads, S, features)` each, `S` = past + segment, views of the buffers.
        place: where the segment stands.
        tables: what `table` has made so far.
        capacity: tokens that the buffers hold, at least `S`.
    """

    tensors: tuple[Tensor, ...]
    place: Place
    tables: dict[int, Tensor]
    capacity: int

    def split(self, sizes: Sequence[int]) -> list[CacheView]:
        """Split by the given numbers of tensors."""
        parts = iter(self.tensors)
        return [replace(self, tensors=tuple(islice(parts, size))) for size in sizes]

    def rooms(self) -> list[KeysValues]:
        """Keys and values in turn, as pairs."""
        pairs = zip(self.tensors[::2], self.tensors[1::2], strict=True)
        return [KeysValuesRoom(keys, values, self.place.past) for keys, values in pairs]

    def table(self, owner: nn.Module, make: Callable[[int], Tensor]) -> Tensor:
        """An owner's table, which depends only on weights and a number of tokens: made once for all that fit."""
        if id(owner) not in self.tables:
            self.tables[id(owner)] = make(self.capacity)
        return self.tables[id(owner)]


@dataclass(frozen=True)
class TokenView(CacheView):
    """A cell's part of a cache for a single token, in a step that is compiled: the slots that it sees. Its own keys and
    values are not written to any.

    Attributes:
        own: those of the latest evaluation, appended; None where they are not wanted.
    """

    own: list[Tensor] | None = None

    def rooms(self) -> list[KeysValues]:
        pairs = zip(self.tensors[::2], self.tensors[1::2], strict=True)
        return [KeysValuesApart(keys, values, self.own) for keys, values in pairs]


class Cache:
    """Per-token tensors of all cells of a model, preallocated, growing in blocks. Changed in place by the model.

    Args:
        entries: what is kept of a token, cell after cell.
        limit: most past tokens that are kept, as a memory's length; None for all.

    Attributes:
        tokens: read so far, padding among them.
        warm_start: whether the solve of a token starts from the state of the one before it, and not from where a
            segment's does. Off: with it a trained model takes more evaluations, and agrees less with a full solve.
    """

    def __init__(self, entries: Sequence[Entry], limit: int | None = None) -> None:
        whole(0, limit=limit)
        self.entries, self.limit = tuple(entries), limit
        self.tokens = 0
        self.warm_start = False
        self._latest: Tensor | None = None
        self._tensors: tuple[Tensor, ...] = ()
        self._adopted = False
        self._end = 0
        self._padding_B: Tensor | None = None
        self._longest_padding = 0
        self._shift_B: Tensor | None = None
        self._tables: dict[int, Tensor] = {}

    @property
    def contents(self) -> tuple[Tensor, ...]:
        """What is kept of the tokens so far: a view for each entry."""
        return tuple(t[..., : self._end, :] for t in self._tensors)

    @property
    def length(self) -> int:
        """Tokens that the next one will see."""
        return self._end if self.limit is None else min(self._end, self.limit)

    @property
    def batch(self) -> int | None:
        """Rows; None before the first token."""
        return self._tensors[0].shape[0] if self._tensors else None

    @property
    def bytes_per_token(self) -> int:
        """Of one row."""
        return sum(t.element_size() * t[0].numel() // t.shape[-2] for t in self._tensors)

    @property
    def bytes(self) -> int:
        """Of the tokens that the next one will see, of all rows."""
        return self.bytes_per_token * self.length * (self.batch or 0)

    def pad(self, padding_B: Tensor, tokens_BL: Tensor) -> None:
        """Declare the first tokens of each row padding, as many as `padding_B` says. Only before the first token."""
        assert not self.tokens
        check_padding(padding_B, tokens_BL)
        self._set_padding(padding_B.to(tokens_BL.device))

    def adopt(self, tensors: Sequence[Tensor], tokens: int, padding_B: Tensor | None = None) -> None:
        """Continue in another cache's tensors, one for each entry, of whose slots `tokens` are filled; `padding_B` says
        how many of each row are padding. Writes to their free slots. Only before the first token."""
        assert not self.tokens
        found = [(*t.shape[1:-2], t.shape[-1]) for t in tensors]
        if found != list(self.entries):
            raise ValueError(f"a cache of this model keeps {list(self.entries)} of a token, found {found}")
        self._tensors, self.tokens, self._end, self._adopted = tuple(tensors), tokens, tokens, True
        if padding_B is not None:
            self._set_padding(padding_B)

    def present(self, length: int) -> Tensor | None:
        """Which of the next tokens are not padding, `(B, length, 1)`; None if all."""
        present_BL = self._present(self.tokens, length)
        return None if present_BL is None else present_BL.unsqueeze(-1)

    def room(self, like_BLD: Tensor) -> CacheView:
        """A view for a segment `(B, L, ·)` of this dtype and device; tokens beyond the limit are dropped."""
        length, past = like_BLD.shape[1], self._reserve(like_BLD)
        first, end = self._end - past, self._end + length
        tensors = tuple(t.narrow(-2, first, end - first) for t in self._tensors)
        position = self.tokens - past
        place = Place(past, position, self._present(position, past + length), self._shift_B)
        return CacheView(tensors, place, self._tables, self._tensors[0].shape[-2])

    def slots(self, like_11D: Tensor) -> Slots | None:
        """Where the next token stands, of this dtype and device, of a row that is alone; None where there are several
        rows or padding, or the buffers are another's."""
        padded = self._present(self.tokens - self.length, self.length + 1) is not None
        if self.batch not in (None, 1) or self.warm_start or padded:
            return None
        past, end = self._reserve(like_11D), self._end
        if self._adopted or self._tensors[0].dtype != like_11D.dtype:
            return None
        seen = tuple(tensor.narrow(-2, end - past, past) for tensor in self._tensors)
        own = tuple(tensor.narrow(-2, end, 1) for tensor in self._tensors)
        return Slots(seen, own, self.tokens if self._shift_B is None else self.tokens + int(self._shift_B))

    def start(self, initial_BLD: Tensor) -> Tensor:
        """Where the solve of the next tokens starts; by default at `initial`."""
        if self._latest is None or not self.warm_start or initial_BLD.shape[1] != 1:
            return initial_BLD
        return self._latest

    def advance(self, states_BLD: Tensor) -> None:
        """Declare what was written for the tokens of these states final."""
        self._latest = states_BLD[:, -1:]
        self._end += states_BLD.shape[1]
        self.tokens += states_BLD.shape[1]

    def select(self, rows: Tensor) -> Cache:
        """A cache of these rows, in this order; rows may repeat, for beams and several samples."""
        return Cache.gathered([(self, rows)])

    @classmethod
    def gathered(cls, parts: Sequence[tuple[Cache, Tensor]]) -> Cache:
        """Rows, `(R,)` integers, of several caches of one model and limit as one, to decode together from here on.
        Shorter rows are padded at their left. A row keeps its positions, so that what it was read with stays valid."""
        first = parts[0][0]
        for cache, _ in parts:
            if cache.entries != first.entries or cache.limit != first.limit:
                raise ValueError("only caches of one model with one limit go together")
        lengths, nexts, tensors, states = zip(*(cache._rows(rows) for cache, rows in parts), strict=True)
        gathered = cls(first.entries, first.limit)
        gathered.warm_start = first.warm_start
        lengths_B = torch.cat(lengths)
        length = int(lengths_B.max())
        gathered.tokens = gathered._end = length
        gathered._padding_B = length - lengths_B
        gathered._longest_padding = int(gathered._padding_B.max())
        gathered._shift_B = torch.cat(nexts) - length
        gathered._tensors = tuple(_at_their_ends(same, length) for same in zip(*tensors, strict=True))
        latest = [state for state in states if state is not None]
        gathered._latest = torch.cat(latest) if len(latest) == len(states) else None
        return gathered

    def _rows(self, rows: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...], Tensor | None]:
        """Of some rows: how many tokens are seen of each, the position of its next one, the last tokens (as many as the
        longest row has), and the latest states, where there are any."""
        assert self._tensors
        length, forgotten = self.length, self.tokens - self.length
        nothing_B = torch.zeros_like(rows)
        padding_B = nothing_B if self._padding_B is None else (self._padding_B[rows] - forgotten).clamp_min(0)
        shift_B = nothing_B if self._shift_B is None else self._shift_B[rows]
        seen = int((length - padding_B).max())
        tensors = tuple(t[..., self._end - seen : self._end, :].index_select(0, rows) for t in self._tensors)
        latest = None if self._latest is None else self._latest.index_select(0, rows)
        return length - padding_B, self.tokens + shift_B, tensors, latest

    def _set_padding(self, padding_B: Tensor) -> None:
        self._longest_padding = int(padding_B.max()) if len(padding_B) else 0
        self._padding_B = padding_B if self._longest_padding else None

    def _reserve(self, like_BLD: Tensor) -> int:
        """Has room for a segment; returns how many past tokens it sees."""
        batch, length = like_BLD.shape[:2]
        if self._tensors and batch != self.batch:
            raise ValueError(f"the cache has batch size {self.batch}, the tokens have {batch}")
        past = self.length
        if not self._tensors or self._end + length > self._tensors[0].shape[-2]:
            self._make_room(like_BLD, past)
        return past

    def _make_room(self, like_BLD: Tensor, past: int) -> None:
        """New buffers with room for the segment and a block of tokens more; the visible past moves there."""
        batch, length = like_BLD.shape[:2]
        capacity = past + length + _BLOCK
        tensors = [_buffer(like_BLD, batch, capacity, entry) for entry in self.entries]
        for new, old in zip(tensors, self._tensors, strict=False):
            new[..., :past, :] = old[..., self._end - past : self._end, :]
        self._tensors, self._end, self._adopted = tuple(tensors), past, False
        self._tables.clear()

    def _present(self, position: int, length: int) -> Tensor | None:
        if self._padding_B is None or position >= self._longest_padding:
            return None
        positions = torch.arange(position, position + length, device=self._padding_B.device)
        return positions >= self._padding_B.unsqueeze(1)


def _buffer(like: Tensor, batch: int, capacity: int, entry: Entry) -> Tensor:
    """Room for so many tokens of each row, `(B, …, capacity, features)`, token after token in memory: those of a row
    that are filled stand side by side, whatever the capacity. No view, which could not be written to in another mode
    of gradients than it was made in."""
    shape = (batch, *entry[:-1], capacity, entry[-1])
    order = torch.empty((batch, capacity, *entry), device="meta").movedim(1, -2)
    return like.new_empty_strided(shape, order.stride())


def _at_their_ends(parts: Sequence[Tensor], length: int) -> Tensor:
    """Buffers `(B, …, length + room, features)` that hold the tokens of the parts up to `length`, and before them
    zeros: what is masked must be finite all the same."""
    first = parts[0]
    batch, entry = sum(len(part) for part in parts), (*first.shape[1:-2], first.shape[-1])
    buffer = _buffer(first, batch, length + _BLOCK, entry).zero_()
    row = 0
    for part in parts:
        buffer[row : row + len(part), ..., length - part.shape[-2] : length, :] = part
        row += len(part)
    return buffer


def check_padding(padding_B: Tensor, tokens_BL: Tensor) -> None:
    """Raises ValueError unless there is a number for each row, and each leaves a token."""
    batch, length = tokens_BL.shape[:2]
    if padding_B.shape != (batch,) or bool(((padding_B < 0) | (padding_B >= length)).any()):
        raise ValueError(
            f"padding must be {batch} numbers from 0 to {length - 1}, one for each row, found {padding_B.tolist()}"
        )
