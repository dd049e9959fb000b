"""The one thread that runs the model: it takes orders, and does turn after turn what the schedule says."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

from equilibria.inference.effort import Effort, depth_at
from equilibria.inference.writing import Likelihood, Piece, Text, Writer, Written
from equilibria.models import TokenModel
from equilibria.serving.errors import ApiError
from equilibria.serving.request import Served, TextsRequest
from equilibria.serving.schedule import Entry, Reading, Row, Schedule, Turn

_log = logging.getLogger(__name__)
_IDLE_SECONDS = 0.5  # between beats where there is nothing to do


@dataclass(frozen=True)
class Scored:
    """Probabilities of a prompt's tokens except the first; and the prompt's number."""

    prompt: int
    likelihoods: Sequence[Likelihood]


@dataclass(frozen=True)
class Wrote:
    """One more token of a text; and the text's number among all of the request."""

    index: int
    piece: Piece


Event = Scored | Wrote | ApiError
News = list[tuple[Hashable, Event]]


@dataclass(frozen=True)
class Order:
    """A request for a job, by whom; without one, the job is to be dropped."""

    job: Hashable
    request: TextsRequest | None = None
    client: tuple[Hashable, ...] = ()


class Worker:
    """Writes the texts of jobs, by a model in evaluation mode.

    Args:
        model: that nothing else uses meanwhile.
        served: its tokenizer, window and limits.
        tell: called by the thread with what has become of jobs.
    """

    def __init__(self, model: TokenModel, served: Served, tell: Callable[[News], None]) -> None:
        self._model, self._served, self._tell = model, served, tell
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._changed = threading.Condition()
        self._orders: list[Order] = []
        self._end = False
        self._beat = time.monotonic()
        # The rest is the thread's own.
        self._schedule = Schedule(served.limits.max_batch)
        self._prompts: dict[Entry, tuple[Hashable, int]] = {}  # the job and the prompt's number
        self._rows: dict[Text, Row] = {}
        self._writers: dict[Effort, Writer] = {}
        self._news: News = []

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def order(self, order: Order) -> None:
        """Wants something of the thread."""
        with self._changed:
            self._orders.append(order)
            self._changed.notify()

    def close(self) -> None:
        """The thread ends after its turn."""
        with self._changed:
            self._end = True
            self._changed.notify()

    def ended(self, seconds: float) -> bool:
        """Whether the thread ends within so many seconds."""
        if self._thread.is_alive():
            self._thread.join(seconds)
        return not self._thread.is_alive()

    @property
    def still(self) -> float:
        """Seconds since its heart last beat, which it does with every turn; infinite once it is dead."""
        return time.monotonic() - self._beat if self._thread.is_alive() else float("inf")

    def _work(self) -> None:
        while True:
            with self._changed:
                self._beat = time.monotonic()
                if not self._orders and not self._prompts and not self._end:
                    self._changed.wait(_IDLE_SECONDS)
                if self._end:
                    return
                orders, self._orders = self._orders, []
            for order in orders:
                self._take(order)
            turn = self._schedule.next()
            if turn is not None:
                started = time.perf_counter()
                self._do(turn)
                self._schedule.charge(turn, time.perf_counter() - started)
            news, self._news = self._news, []
            if news or turn is not None:
                self._tell(news)

    def _take(self, order: Order) -> None:
        if order.request is None:
            self._drop(order.job)
            return
        request = order.request
        for number, wanted in enumerate(request.texts):
            scored = not (request.scores and request.prompts[number])
            entry = Entry((*order.client, order.job), wanted, request.effort, scored, request.write)
            self._prompts[entry] = order.job, number
            self._schedule.add(entry)
            if request.scores and scored:  # a prompt of no tokens has no probabilities
                self._news.append((order.job, Scored(number, [])))
                self._end_scored(entry)

    def _do(self, turn: Turn) -> None:
        """A turn; where it fails, its requests do."""
        entries = [turn.entry] if isinstance(turn, Reading) else [row.entry for row in turn.rows]
        try:
            writer = self._writer(entries[0].effort)
            if isinstance(turn, Reading):
                self._read(turn.entry, writer)
            else:
                texts = [row.text for row in turn.rows if row.text is not None]
                self._note(writer.step(texts))
        except Exception as problem:
            _log.exception("a turn of the model failed")
            for job in {self._prompts[entry][0] for entry in entries if entry in self._prompts}:
                self._fail(job, problem)
        for effort in self._writers.keys() - self._schedule.efforts:  # free their caches
            del self._writers[effort]

    def _read(self, entry: Entry, writer: Writer) -> None:
        """The probabilities of a prompt, its next part, or more of its texts."""
        job, number = self._prompts[entry]
        if not entry.scored:
            self._news.append((job, Scored(number, writer.likelihoods(entry.wanted))))
            entry.scored = True
            self._end_scored(entry)
            return
        if entry.prompt is None:
            entry.prompt = writer.read(entry.wanted, self._served.limits.prompt_part)
        if not entry.prompt.read:
            entry.prompt.advance()
        if entry.prompt.read:
            rows = self._schedule.begins(entry)
            left = sum(row.text is None for row in entry.rows) - len(rows)
            if rows:
                written = writer.start(entry.prompt, [row.copy for row in rows], keep=left > 0)
                for row, (text, _) in zip(rows, written, strict=True):
                    row.text, self._rows[text] = text, row
                self._note(written)

    def _end_scored(self, entry: Entry) -> None:
        """Ends a prompt that was only to be scored."""
        if not entry.write:
            self._end_rows(entry.rows)

    def _writer(self, effort: Effort) -> Writer:
        if effort not in self._writers:
            depth = depth_at(self._model, effort)
            self._writers[effort] = Writer(self._model, self._served.tokenizer, self._served.window, depth)
        return self._writers[effort]

    def _note(self, written: Written) -> None:
        """Keeps what was written for delivery."""
        for text, piece in written:
            if text not in self._rows:  # another text of its request has failed
                continue
            row = self._rows[text]
            job, number = self._prompts[row.entry]
            if isinstance(piece, Exception):
                _log.error("a text could not be written: %s", piece)
                self._fail(job, piece)
                continue
            self._news.append((job, Wrote(number * row.entry.wanted.copies + row.copy, piece)))
            if piece.finish is not None:
                self._end_rows([row])

    def _fail(self, job: Hashable, problem: Exception) -> None:
        message = f"the text could not be written: {problem}"
        self._news.append((job, ApiError(500, message, code="internal_error")))
        self._drop(job)

    def _drop(self, job: Hashable) -> None:
        for entry in [entry for entry, (owner, _) in self._prompts.items() if owner is job]:
            self._end_rows(entry.rows)

    def _end_rows(self, rows: Iterable[Row]) -> None:
        for row in [*rows]:
            self._schedule.drop(row)
            if row.text is not None:
                del self._rows[row.text]
                if (writer := self._writers.get(row.entry.effort)) is not None:
                    writer.leave(row.text)
            if not row.entry.rows:
                del self._prompts[row.entry]
