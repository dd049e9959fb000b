"""Who is next: which prompt is read on, and which texts are written on, in the next turn of the model.

Three rules:

- Places are dealt round, as cards are: by client, by its users, by their requests, by the texts of each. So a request
  of many texts takes what others leave, and starts with the places there are. More texts are begun than there are
  places, so that a short one need not wait for long ones to end; they take turns at the places.
- A turn reads one part of one prompt, or writes a token of texts of one effort. Each effort gets a share of the time
  that is its texts' share of the places, and reading as much as all writing together. The turn is next that would be
  over first in the time of its share, by what such turns have cost so far (weighted fair queueing: Demers, Keshav and
  Shenker 1989): what costs more comes round less often.
- Clients take turns at having a prompt read, part by part.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from equilibria.inference.effort import Effort
from equilibria.inference.writing import Prompt, Text, TextRequest

_BEGUN = 2  # times as many texts are begun as there are places
_TOKENS = 16  # of a text before others may have its place

Path = tuple[Hashable, ...]


@dataclass(eq=False)
class Row:
    """One text of a prompt.

    Attributes:
        copy: its number among those that continue the prompt.
        text: None until it has been begun.
        since: the turn when it came, or last gave way to others.
        tokens: so far.
    """

    entry: Entry
    copy: int
    since: int
    text: Text | None = None
    tokens: int = 0


@dataclass(eq=False)
class Entry:
    """A prompt and what is wanted of it.

    Attributes:
        path: whose it is: the client, its user, the request.
        wanted: the prompt and its texts.
        effort: of its solves.
        scored: whether the probabilities of its tokens are known, or not wanted.
        write: whether texts are wanted.
        prompt: while it is read and continued.
        rows: its texts that have not ended.
    """

    path: Path
    wanted: TextRequest
    effort: Effort
    scored: bool = True
    write: bool = True
    prompt: Prompt | None = None
    rows: list[Row] = field(default_factory=list)


@dataclass(frozen=True)
class Reading:
    """A turn that scores a prompt, reads its next part, or, once it has been read, begins texts of it."""

    entry: Entry


@dataclass(frozen=True)
class Writing:
    """A turn that writes one token of each of some texts."""

    effort: Effort
    rows: Sequence[Row]


Turn = Reading | Writing


class Schedule:
    """Decides about turns; `places` is how many texts are written together at most."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._rows: dict[Row, None] = {}
        self._shares: dict[Row, float] = {}
        self._turn = 0
        self._read_at: dict[Path, int] = {}  # the turn when a client, a user or a request last had a part read
        # Of each effort whose texts have places, and of reading at None:
        self._spent: dict[Effort | None, float] = {}  # time of its share; who comes later begins where the others are
        self._likely: dict[Effort | None, float] = {}  # what its turns cost lately

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def begun(self) -> int:
        """Texts that have been begun and have not ended."""
        return sum(row.text is not None for row in self._rows)

    @property
    def efforts(self) -> set[Effort]:
        """Of all entries."""
        return {row.entry.effort for row in self._rows}

    def add(self, entry: Entry) -> None:
        """One more prompt."""
        if not self._rows:
            self._read_at.clear()
        entry.rows = [Row(entry, copy, self._turn) for copy in range(entry.wanted.copies)]
        self._rows |= dict.fromkeys(entry.rows)

    def drop(self, row: Row) -> None:
        """A text has ended."""
        row.entry.rows.remove(row)
        del self._rows[row]

    def next(self) -> Turn | None:
        """The next turn; None where there is nothing to do."""
        self._turn += 1
        turns: dict[Effort | None, Turn] = {turn.effort: turn for turn in self._writing()}
        if (entry := self._to_read()) is not None:
            turns[None] = Reading(entry)
        if not turns:
            return None
        there = [spent for effort, spent in self._spent.items() if effort in turns]
        self._spent = {effort: self._spent.get(effort, min(there, default=0.0)) for effort in turns}
        return turns[min(turns, key=lambda effort: self._over(effort, turns[effort]))]

    def begins(self, entry: Entry) -> list[Row]:
        """Which texts of a prompt that has been read begin now."""
        return [row for row in self._admitted() if row.entry is entry and row.text is None]

    def charge(self, turn: Turn, cost: float) -> None:
        """Says what a turn cost, in seconds or any other unit."""
        effort = turn.effort if isinstance(turn, Writing) else None
        self._spent[effort] += cost / self._share(turn)
        self._likely[effort] = (self._likely.get(effort, cost) + cost) / 2
        if isinstance(turn, Reading):
            path = turn.entry.path
            for length in range(1, len(path) + 1):
                self._read_at[path[:length]] = self._turn
            return
        for row in turn.rows:
            row.tokens += 1
            if row.tokens % _TOKENS == 0:
                row.since = self._turn

    def _share(self, turn: Turn) -> float:
        return 1.0 if isinstance(turn, Reading) else sum(self._shares[row] for row in turn.rows)

    def _over(self, effort: Effort | None, turn: Turn) -> float:
        """When a turn is likely to be over, in the time of its share; one of a new kind is taken for a dear one."""
        likely = self._likely.get(effort, max(self._likely.values(), default=0.0))
        return self._spent[effort] + likely / self._share(turn)

    def _writing(self) -> Iterator[Writing]:
        """The texts that have places, by their efforts."""
        begun = sorted((row for row in self._rows if row.text is not None), key=lambda row: row.since)
        placed = [*islice(_dealt(begun), self._places)]
        self._shares = dict(_shares(placed))
        efforts: dict[Effort, list[Row]] = {}
        for row in placed:
            efforts.setdefault(row.entry.effort, []).append(row)
        yield from (Writing(effort, rows) for effort, rows in efforts.items())

    def _admitted(self) -> Iterator[Row]:
        """The texts that may be begun, or have been."""
        rows = sorted(self._rows, key=lambda row: (row.text is None, row.since))
        return islice(_dealt(rows), _BEGUN * self._places)

    def _to_read(self) -> Entry | None:
        """The prompt that is read on, or continued by further texts."""
        open_ = {row.entry: row for row in self._admitted() if row.text is None}
        rows = sorted(open_.values(), key=lambda row: self._read_at.get(row.entry.path, -1))
        first = next(_dealt(rows, order=lambda path: self._read_at.get(path, -1)), None)
        return None if first is None else first.entry


def _dealt(rows: Iterable[Row], level: int = 0, order: Callable[[Path], int] | None = None) -> Iterator[Row]:
    """Rows in the order in which places are dealt to them: one to each client, then each a second one, and so on.

    Args:
        rows: in the order in which those of one request get them, and, without `order`, their requests and clients too.
        level: of the paths, that the hands are of.
        order: of a client, a user or a request: who has the least comes first.
    """
    hands: dict[Path, list[Row]] = {}
    rows = list(rows)
    if not rows or level == len(rows[0].entry.path):
        yield from rows
        return
    for row in rows:
        hands.setdefault(row.entry.path[: level + 1], []).append(row)
    paths = sorted(hands, key=order) if order is not None else [*hands]
    dealing = [_dealt(hands[path], level + 1, order) for path in paths]
    while dealing:
        going = []
        for hand in dealing:
            if (row := next(hand, None)) is not None:
                yield row
                going.append(hand)
        dealing = going


def _shares(rows: Sequence[Row], level: int = 0, share: float = 1.0) -> Iterator[tuple[Row, float]]:
    """What each row has of the whole: equal for all clients, for all users of a client, and so on."""
    if not rows:
        return
    if level == len(rows[0].entry.path):
        yield from ((row, share / len(rows)) for row in rows)
        return
    parts: dict[Hashable, list[Row]] = {}
    for row in rows:
        parts.setdefault(row.entry.path[level], []).append(row)
    for part in parts.values():
        yield from _shares(part, level + 1, share / len(parts))
