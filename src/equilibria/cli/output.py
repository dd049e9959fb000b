"""Standard output and standard error whose reader may leave, or whose disk may be full, before the work is done."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from equilibria.errors import UserError


class NobodyReads(BaseException):
    """The reader of standard output has left, as that of `| head` does; only the exit code says so."""

    code = 128 + signal.SIGPIPE


class Output:
    """A text stream that fails once at most: from then on all that is written to it goes nowhere.

    Args:
        stream: what to write to.
        failed: called when that fails; may raise what the writer is to get.
    """

    def __init__(self, stream: TextIO, failed: Callable[[OSError], None]) -> None:
        self._stream = stream
        self.failed = failed

    def write(self, text: str) -> int:
        """Writes text, or drops it; returns its length."""
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flushes the stream."""
        self._attempt(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as problem:
            with suppress(OSError):  # a stream in memory has no descriptor
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)
            self.failed(problem)


@contextmanager
def guarded() -> Iterator[None]:
    """While entered, standard output and standard error are each an `Output`.

    What cannot be written to standard error is dropped. Where standard output cannot be written, `NobodyReads` is
    raised, or a UserError where that has another cause; unless `go_on_unheard` has been called.
    """
    streams = sys.stdout, sys.stderr
    if sys.stdout is not None:
        sys.stdout = cast(TextIO, Output(sys.stdout, _end))
    if sys.stderr is not None:
        sys.stderr = cast(TextIO, Output(sys.stderr, lambda problem: None))
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(NobodyReads, UserError):
                print(end="", file=stream, flush=True)
        sys.stdout, sys.stderr = streams


def go_on_unheard() -> None:
    """From here on, what cannot be written to standard output is dropped: the work leaves more than what it says."""
    if isinstance(sys.stdout, Output):
        sys.stdout.failed = _say


def _end(problem: OSError) -> None:
    if isinstance(problem, BrokenPipeError):
        raise NobodyReads from problem
    raise UserError(f"standard output cannot be written ({problem.strerror})") from problem


def _say(problem: OSError) -> None:
    print(
        f"warning: standard output cannot be written ({problem.strerror}); the work goes on without it", file=sys.stderr
    )
