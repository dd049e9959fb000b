"""The one thread that runs the model: takes requests from a queue and decodes all their texts together.

Each round reads one waiting prompt, if there is room for its texts, and then writes one more token of every text.
Requests of each effort form a batch of their own, since a batch has one solver.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from equilibria.inference.effort import Effort, depth_at
from equilibria.inference.writing import Likelihood, Piece, Text, Writer, Written
from equilibria.models import TokenModel
from equilibria.serving.errors import ApiError
from equilibria.serving.request import CompletionRequest, Served

_log = logging.getLogger(__name__)


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


@dataclass(eq=False)
class Job:
    """A request on its way through the worker."""

    request: CompletionRequest
    deadline: float  # in seconds of `time.monotonic`
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)  # an `ApiError` is the last
    gone: bool = False  # its client no longer waits


class Worker:
    """Writes the texts of requests, by a model in evaluation mode; public methods are for the event loop."""

    def __init__(self, model: TokenModel, served: Served) -> None:
        self._model, self._served, self._limits = model, served, served.limits
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Job, int]] = deque()
        self._writers: dict[Effort, Writer] = {}
        self._running: dict[Text, tuple[Job, int]] = {}
        self._news: list[tuple[Job, Event]] = []
        self._unconverged = 0
        self._end: float | None = None
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Starts the thread; events go to the event loop that calls this."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    @property
    def load(self) -> dict[str, int]:
        """Texts that are running, and waiting; and the tokens so far whose solves did not converge."""
        with self._changed:
            return {"running": len(self._running), "waiting": self._queued(), "unconverged": self._unconverged}

    def submit(self, request: CompletionRequest) -> Job:
        """Queues a request; raises an ApiError if the queue is full (429), or the server is about to stop (503)."""
        job = Job(request, time.monotonic() + self._limits.request_timeout)
        wanted = len(request.texts) * request.asked.n
        with self._changed:
            if self._end is not None:
                raise ApiError(503, "the server is shutting down", code="shutting_down")
            queued = self._queued()
            if queued + wanted > self._limits.max_queue:
                most = self._limits.max_queue
                message = f"{queued} texts wait already, and {wanted} more exceed the limit of {most}; try again later"
                raise ApiError(429, message, code="queue_full")
            self._waiting.extend((job, number) for number in range(len(request.texts)))
            self._changed.notify()
        return job

    def cancel(self, job: Job) -> None:
        """Drops a request whose client no longer waits."""
        with self._changed:
            job.gone = True
            self._changed.notify()

    def stop(self) -> None:
        """Refuses new requests, and gives the others the shutdown timeout to finish."""
        with self._changed:
            if self._end is None:
                self._end = time.monotonic() + self._limits.shutdown_timeout
            self._changed.notify()

    def _queued(self) -> int:
        return sum(job.request.asked.n for job, _ in self._waiting if not job.gone)

    def _jobs(self) -> set[Job]:
        with self._changed:
            return {job for job, _ in [*self._waiting, *self._running.values()]}

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._running:
                    if self._end is not None:
                        return
                    self._changed.wait()
            try:
                self._dismiss()
                self._admit()
                self._write()
            except Exception as problem:  # a bug of this class: fail all requests, serve on
                _log.exception("the worker failed")
                for job in self._jobs():
                    self._fail(job, _internal(problem))
                self._writers.clear()
            self._deliver()

    def _dismiss(self) -> None:
        """Ends requests that are out of time or cancelled."""
        now = time.monotonic()
        for job in self._jobs():
            if self._end is not None and now > self._end:
                self._fail(job, ApiError(503, "the server is shutting down", code="shutting_down"))
            elif now > job.deadline:
                seconds = self._limits.request_timeout
                self._fail(job, ApiError(504, f"the request took more than {seconds:g} seconds", code="timeout"))
            elif job.gone:
                self._drop(job)

    def _admit(self) -> None:
        """Reads the prompt that has waited longest, if there are places for its texts."""
        with self._changed:
            if not self._waiting:
                return
            job, number = self._waiting[0]
            if len(self._running) + job.request.asked.n > self._limits.max_batch:
                return
            self._waiting.popleft()
        request, wanted = job.request, job.request.texts[number]
        try:
            writer = self._writer(request.effort)
            if request.scores:
                likelihoods = writer.likelihoods(wanted) if request.prompts[number] else []
                self._unconverged += sum(one.converged is False for one in likelihoods)
                self._news.append((job, Scored(number, likelihoods)))
            if request.write:
                self._note(writer.join(wanted), job, number * wanted.copies)
        except Exception as problem:
            _log.exception("a prompt could not be read")
            self._fail(job, _internal(problem))

    def _writer(self, effort: Effort) -> Writer:
        if effort not in self._writers:
            depth = depth_at(self._model, effort)
            self._writers[effort] = Writer(self._model, self._served.tokenizer, self._served.window, depth)
        return self._writers[effort]

    def _write(self) -> None:
        """One more token of every text."""
        for effort, writer in list(self._writers.items()):
            texts = writer.texts
            try:
                self._note(writer.step())
            except Exception as problem:
                _log.exception("a batch could not be decoded")
                for job in {self._running[text][0] for text in texts if text in self._running}:
                    self._fail(job, _internal(problem))
                del self._writers[effort]
                continue
            if not writer.texts:  # free its cache
                del self._writers[effort]

    def _note(self, written: Written, job: Job | None = None, first: int = 0) -> None:
        """Keeps what was written for delivery; with `job`, the texts are new ones of it."""
        if job is not None:
            self._running |= {text: (job, first + text.copy) for text, _ in written}
        for text, piece in written:
            if text not in self._running:  # another text of its request has failed
                continue
            owner, index = self._running[text]
            if isinstance(piece, Exception):
                _log.error("a text could not be written", exc_info=piece)
                self._fail(owner, _internal(piece))
                continue
            self._unconverged += piece.converged is False
            self._news.append((owner, Wrote(index, piece)))
            if piece.finish is not None:
                del self._running[text]

    def _fail(self, job: Job, problem: ApiError) -> None:
        self._news.append((job, problem))
        self._drop(job)

    def _drop(self, job: Job) -> None:
        job.gone = True
        with self._changed:
            self._waiting = deque(entry for entry in self._waiting if entry[0] is not job)
        for text in [text for text, (owner, _) in self._running.items() if owner is job]:
            del self._running[text]
            for writer in self._writers.values():
                writer.leave(text)

    def _deliver(self) -> None:
        news, self._news = self._news, []
        if news and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_put, news)


def _put(news: list[tuple[Job, Event]]) -> None:
    for job, event in news:
        job.events.put_nowait(event)


def _internal(problem: Exception) -> ApiError:
    return ApiError(500, f"the text could not be written: {problem}", code="internal_error")
