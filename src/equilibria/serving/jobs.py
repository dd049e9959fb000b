"""Requests on their way, as the event loop sees them: how many wait, how long, and whether the model still answers.

Nothing here waits for the thread that runs the model: where it hangs or is dead, deadlines are kept all the same, and
health says so.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import dataclass, field

from equilibria.models import TokenModel
from equilibria.serving.errors import ApiError
from equilibria.serving.request import Served, TextsRequest
from equilibria.serving.worker import Event, News, Order, Scored, Worker, Wrote

_ROUNDS = 8  # of the event loop: from a connection to an answer that needs no model
_HEARD_SECONDS = 0.03  # for which the model waits for them at most


@dataclass(eq=False)
class Job:
    """A request.

    Attributes:
        events: what has become of it; an `ApiError` is the last.
        waiting: texts that have not been begun.
        running: texts that have been begun and have not ended.
    """

    request: TextsRequest
    client: Hashable
    waiting: int
    running: int = 0
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    _begun: set[int] = field(default_factory=set)

    def take(self, event: Event) -> None:
        """Counts what has happened, and tells it."""
        if isinstance(event, Scored) and not self.request.write:
            self.waiting -= self.request.copies
        elif isinstance(event, Wrote):
            if event.index not in self._begun:
                self._begun.add(event.index)
                self.waiting, self.running = self.waiting - 1, self.running + 1
            self.running -= event.piece.finish is not None
        self.events.put_nowait(event)


class Desk:
    """Takes requests in, and ends them in time. All of it is for the event loop."""

    def __init__(self, model: TokenModel, served: Served) -> None:
        self._served, self._limits = served, served.limits
        self._jobs: dict[Job, asyncio.TimerHandle] = {}
        self._worker = Worker(model, served, self._tell)
        self._loop: asyncio.AbstractEventLoop | None = None
        self.stopping = False

    def open(self) -> None:
        """Starts the thread that runs the model; what becomes of requests is told to the loop that calls this."""
        self._loop = asyncio.get_running_loop()
        self._worker.start()

    @property
    def running(self) -> int:
        """Texts that are being written."""
        return sum(job.running for job in self._jobs)

    @property
    def waiting(self) -> int:
        """Texts that have not been begun."""
        return sum(job.waiting for job in self._jobs)

    @property
    def stalled(self) -> bool:
        """Whether the thread's heart has not beaten for too long."""
        return self._worker.still > self._limits.stall_timeout

    def check(self) -> None:
        """Raises an ApiError (503) where no new request is taken: the server ends, or the model does not answer."""
        if self.stopping:
            raise _stopping()
        if self.stalled:
            since = f"for {still:.0f} seconds" if (still := self._worker.still) < float("inf") else "any more"
            raise ApiError(503, f"the model does not answer {since}; start the server again", code="stalled")

    def submit(self, request: TextsRequest, client: Hashable = None) -> Job:
        """Takes a request in.

        Args:
            client: who asks; places and the queue are shared among clients.

        Raises:
            ApiError: the queue is full (429), or `check` says why not.
        """
        self.check()
        wanted = len(request.texts) * request.copies
        self._check_room(wanted, client)
        job, seconds = Job(request, client, wanted), self._limits.request_timeout
        late = ApiError(504, f"the request took more than {seconds:g} seconds", code="timeout")
        self._jobs[job] = asyncio.get_running_loop().call_later(seconds, self._cut, job, late)
        self._worker.order(Order(job, request, (client, request.user)))
        return job

    def _check_room(self, wanted: int, client: Hashable) -> None:
        """Raises an ApiError (429) where the queue is full, unless the client has less than its share of it: who fills
        it keeps no other out."""
        queued, most = self.waiting, self._limits.max_queue
        share = most // len({client, *(job.client for job in self._jobs)})
        own = sum(job.waiting for job in self._jobs if job.client == client)
        if queued + wanted > most and own + wanted > share:
            message = f"{queued} texts wait already, and {wanted} more exceed the limit of {most}; try again later"
            raise ApiError(429, message, code="queue_full")

    def drop(self, job: Job) -> None:
        """Forgets a request, whether it has been answered or nobody waits for it any more."""
        if (timer := self._jobs.pop(job, None)) is not None:
            timer.cancel()
            if job.waiting or job.running:
                self._worker.order(Order(job))

    def stop(self) -> None:
        """Takes in no more, and gives what there is the shutdown timeout to finish."""
        if not self.stopping and self._loop is not None:
            self.stopping = True
            self._loop.call_later(self._limits.shutdown_timeout, self.cut)

    def cut(self) -> int:
        """Ends all requests now; returns how many there were."""
        jobs = [*self._jobs]
        for job in jobs:
            self._cut(job, _stopping())
        return len(jobs)

    def close(self) -> None:
        """The thread ends after its turn."""
        self._worker.close()

    def ended(self, seconds: float) -> bool:
        """Whether the thread ends within so many seconds."""
        return self._worker.ended(seconds)

    def _cut(self, job: Job, problem: ApiError) -> None:
        job.events.put_nowait(problem)
        self.drop(job)

    def _tell(self, news: News) -> None:
        """Called by the thread, after each turn. It lets the event loop go round some times before the next one: both
        need the interpreter, which the loop would lose to the thread with every system call."""
        heard = threading.Event()
        with suppress(RuntimeError):  # the loop has ended
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._take, news, heard)
            heard.wait(_HEARD_SECONDS)

    def _go_round(self, heard: threading.Event, times: int) -> None:
        if times and self._loop is not None:
            self._loop.call_soon(self._go_round, heard, times - 1)
        else:
            heard.set()

    def _take(self, news: News, heard: threading.Event) -> None:
        self._go_round(heard, _ROUNDS)
        for job, event in news:
            if isinstance(job, Job) and job in self._jobs:
                job.take(event)
                if isinstance(event, ApiError):
                    self.drop(job)


def _stopping() -> ApiError:
    return ApiError(503, "the server is shutting down", code="shutting_down")
