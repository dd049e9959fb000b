"""Who is next: places dealt round, time by cost, prompts in turn."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from equilibria.inference.effort import Effort
from equilibria.inference.writing import Prompt, Text, TextRequest
from equilibria.serving.schedule import Entry, Reading, Row, Schedule, Writing

SLOW = Effort(max_evaluations=100)


class Play:
    """A schedule whose turns do nothing but take time: a token for each row, a part for each reading."""

    def __init__(self, places: int, cost: Callable[[Reading | Writing], float] = lambda turn: 1.0) -> None:
        self.schedule, self.cost, self.time = Schedule(places), cost, 0.0
        self.left: dict[Row, int] = {}
        self.parts: dict[Entry, int] = {}
        self.first: dict[Entry, float] = {}
        self.ended: dict[Entry, float] = {}
        self.tokens: Counter[Any] = Counter()
        self.widest = 0

    def add(self, path: tuple[Any, ...], copies: int = 1, tokens: int = 10, parts: int = 1, **more: Any) -> Entry:
        wanted = TextRequest(prompt=(1,), max_new_tokens=tokens, copies=copies)
        entry = Entry(path, wanted, more.get("effort", Effort()))
        self.schedule.add(entry)
        self.parts[entry] = parts
        self.left |= dict.fromkeys(entry.rows, tokens)
        return entry

    def turn(self) -> Reading | Writing | None:
        turn = self.schedule.next()
        if turn is None:
            return None
        rows: list[Row] = []
        if isinstance(turn, Reading):
            if self.parts[turn.entry]:
                self.parts[turn.entry] -= 1
            if not self.parts[turn.entry]:
                turn.entry.prompt = cast(Prompt, object())
                rows = self.schedule.begins(turn.entry)
                assert rows
                for row in rows:
                    assert row.text is None
                    row.text = cast(Text, object())
        else:
            assert 0 < len(turn.rows) <= self.schedule._places
            assert {row.entry.effort for row in turn.rows} == {turn.effort}
            rows = [*turn.rows]
            self.widest = max(self.widest, len(rows))
        self.time += (spent := self.cost(turn))
        for row in rows:
            self.first.setdefault(row.entry, self.time)
            self.tokens[row.entry.path[0]] += 1
            self.left[row] -= 1
            if not self.left[row]:
                self.schedule.drop(row)
                self.ended[row.entry] = self.time
        self.schedule.charge(turn, spent)
        return turn

    def until(self, *entries: Entry) -> None:
        while any(entry.rows for entry in entries):
            assert self.turn() is not None


REQUESTS = st.tuples(
    st.sampled_from("abc"),
    st.sampled_from([None, "u"]),
    st.integers(1, 9),
    st.integers(1, 30),
    st.integers(1, 4),
    st.sampled_from([Effort(), SLOW, Effort(tolerance=0.1)]),
)


@settings(deadline=None)
@given(st.lists(REQUESTS, min_size=1, max_size=8), st.integers(1, 6), st.integers(0, 99))
def test_everything_ends_and_no_more_than_the_places_write(
    requests: list[tuple[Any, ...]], places: int, seed: int
) -> None:
    choose, play = (
        random.Random(seed),
        Play(places, cost=lambda turn: 0.1 + (turn.effort is SLOW) if isinstance(turn, Writing) else 1.0),
    )
    entries = []
    for number, (client, user, copies, tokens, parts, effort) in enumerate(requests):
        entries.append(play.add((client, user, number), copies, tokens, parts, effort=effort))
        for _ in range(choose.randrange(4)):
            play.turn()
        if choose.random() < 0.1:  # a client goes away
            for row in [*entries[0].rows]:
                play.schedule.drop(row)
    for _ in range(10_000):
        if play.turn() is None:
            break
    assert len(play.schedule) == 0
    assert play.schedule.next() is None


def test_a_request_of_many_texts_starts_with_the_places_there_are() -> None:
    play = Play(32)
    play.add(("a", None, 1), tokens=1000)
    while not any(row.text for row in play.left):
        play.turn()
    many = play.add(("b", None, 2), copies=32, tokens=20)
    for _ in range(3):
        play.turn()
    assert sum(row.text is not None for row in many.rows) == 32
    turn = play.turn()
    turn = turn if isinstance(turn, Writing) else play.turn()
    assert isinstance(turn, Writing)
    assert len(turn.rows) == 32


def test_short_requests_do_not_wait_for_the_long_ones_of_another_client() -> None:
    for path in (("b", None), ("a", "other"), ("a", None)):  # even of the same client, if it has not begun too much
        play = Play(32)
        long = [play.add(("a", None, n), tokens=1000) for n in range(32)]
        for _ in range(100):
            play.turn()
        short = [play.add((*path, 100 + n), tokens=8) for n in range(8)]
        started = play.time
        play.until(*short)
        assert play.time - started < 80
        assert all(entry.rows for entry in long)


def test_a_queue_of_one_client_does_not_hold_another() -> None:
    play = Play(8)
    for n in range(200):
        play.add(("a", None, n), tokens=100, parts=3)
    for _ in range(300):
        play.turn()
    short = play.add(("b", None, 1000), tokens=8)
    started = play.time
    play.until(short)
    assert play.time - started < 30


def test_parts_of_a_long_prompt_let_others_write_and_read() -> None:
    play = Play(8)
    writing = play.add(("a", None, 1), tokens=1000)
    for _ in range(4):
        play.turn()
    play.add(("b", None, 2), parts=100)
    kinds = [type(play.turn()) for _ in range(20)]
    assert kinds.count(Writing) == kinds.count(Reading) == 10
    short = play.add(("c", None, 3), tokens=3)
    started = play.time
    play.until(short)
    assert play.time - started < 10
    assert writing.rows


def test_time_is_shared_by_cost() -> None:
    """Thirty-one requests at an effort of their own each, of which a turn costs a hundred times as much."""
    play = Play(32, cost=lambda turn: 100.0 if isinstance(turn, Writing) and turn.effort != Effort() else 1.0)
    for n in range(31):
        play.add(("a", None, n), tokens=1000, effort=Effort(max_evaluations=100 + n))
    other = play.add(("b", None, 100), tokens=1000)
    play.until(other)
    # Half of the time is the other client's: 1,000 turns of 1, beside as much for all the others; and their prompts.
    assert 1000 <= play.time < 2600


def test_efforts_of_one_client_share_its_time_alone() -> None:
    play = Play(8, cost=lambda turn: 10.0 if isinstance(turn, Writing) and turn.effort == SLOW else 1.0)
    play.add(("a", None, 1), tokens=10_000, effort=SLOW)
    play.add(("a", None, 2), tokens=10_000)
    play.add(("b", None, 3), tokens=10_000)
    spent: Counter[Effort] = Counter()
    for _ in range(3000):
        turn = play.turn()
        if isinstance(turn, Writing):
            spent[turn.effort] += int(play.cost(turn))
    # a quarter for the slow one, three quarters for the two others, which are written together
    assert 2.5 < spent[Effort()] / spent[SLOW] < 3.5


def test_texts_beyond_the_places_take_turns() -> None:
    play = Play(4)
    entries = [play.add(("a", None, n), tokens=10_000) for n in range(8)]
    for _ in range(2000):
        play.turn()
    counts = [10_000 - play.left[entry.rows[0]] for entry in entries]
    assert max(counts) - min(counts) <= 40
    assert play.widest == 4
