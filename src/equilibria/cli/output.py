"""Standard output and error whose reader may leave, or whose disk may be full, before the work is done."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from equilibria.errors import UserError


class NobodyReads(BaseException):
    """The reader of standard output has left, as `| head` does; only the exit code says so."""

    code = 128 + signal.SIGPIPE


class GuardedStream:
    """A text stream that fails once at most: it then calls `failed`, which may raise, and drops all further text."""

    def __init__(self, stream: TextIO, failed: Callable[[OSError], None]) -> None:
        self._stream = stream
        self.failed = failed

    def write(self, text: str) -> int:
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
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
    """Makes standard output and standard error a `GuardedStream` each.

    What standard error cannot take is dropped. If standard output fails, `NobodyReads` is raised, or a UserError where
    the cause is another than its reader; not after `go_on_unheard`.
    """
    streams = sys.stdout, sys.stderr
    if sys.stdout is not None:
        sys.stdout = cast(TextIO, GuardedStream(sys.stdout, _end))
    if sys.stderr is not None:
        sys.stderr = cast(TextIO, GuardedStream(sys.stderr, lambda problem: None))
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(NobodyReads, UserError):
                print(end="", file=stream, flush=True)
        sys.stdout, sys.stderr = streams


def go_on_unheard() -> None:
    """Drops what standard output cannot take from here on: the command's work is more than what it prints."""
    if isinstance(sys.stdout, GuardedStream):
        sys.stdout.failed = _say


def clock(seconds: float) -> str:
    """A duration as `2 d 3:04:05`."""
    whole = round(seconds)
    days = f"{whole // 86400} d " if whole >= 86400 else ""
    return f"{days}{whole // 3600 % 24}:{whole // 60 % 60:02}:{whole % 60:02}"


def age(seconds: float) -> str:
    """How long ago something was, in its largest unit, as `3 h`."""
    for name, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds / length)} {name}"
    return "now"


def size_on_disk(size: int) -> str:
    """Bytes in the unit that keeps them short, as `1.2 MB`."""
    for name, unit in (("GB", 1e9), ("MB", 1e6)):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size / 1e3:.0f} kB"


def _end(problem: OSError) -> None:
    if isinstance(problem, BrokenPipeError):
        raise NobodyReads from problem
    raise UserError(f"standard output cannot be written ({problem.strerror})") from problem


def _say(problem: OSError) -> None:
    print(f"warning: standard output cannot be written ({problem.strerror}); continuing without it", file=sys.stderr)
