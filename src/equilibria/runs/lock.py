"""One process at a time writes a run; those that only read it need not ask.

The lock is the kernel's, on a file in the run folder. It is there for as long as the process that holds it, however
that ends, so none is ever stale; it moves with the folder, and a copy of the folder is free. It excludes all processes
of a host, and those of other hosts where the file system passes locks on to them: NFS 4, CephFS, GPFS, Lustre mounted
with `flock`. Where locks stay on the host (NFS mounted with `nolock` or `local_lock`), a writer on another one is not
noticed. Where there are none at all, a marker stands in: what a killed process left is recognised on its own host, and
on another one a person removes it.

Who holds the lock, and since when, is written beside it, for people to read: nothing follows from it.
"""

import errno
import json
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from equilibria.errors import UserError, unwritable
from equilibria.files.durable import reported, write_durably
from equilibria.files.formats import read_json
from equilibria.runs.folder import RunFolder

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)
_PATIENCE = 1.0  # seconds: who only asks lets go at once, and who has just begun has said so by then
_LONGEST_KEEPING = 10.0  # seconds, for a file or two


@dataclass(frozen=True)
class Writer:
    """The process that writes a run, and since when it does."""

    pid: int
    host: str
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


class RunInUse(UserError):
    """Another process writes the run."""


@contextmanager
def writing(folder: RunFolder) -> Iterator[None]:
    """While entered, nobody else writes a run; of several processes that train together, one enters.

    Args:
        folder: of the run; it exists.

    Raises:
        RunInUse: another process does; the message names it.
        UserError: the folder cannot be written.
    """
    lock = _locked(folder)
    try:
        since = datetime.now().astimezone().isoformat(" ", "seconds")
        me = Writer(os.getpid(), socket.gethostname(), since)
        with suppress(OSError):  # a disk that is full keeps nobody from freeing some space
            write_durably(folder.writer, json.dumps(asdict(me)) + "\n")
        yield
    finally:
        with suppress(OSError):
            folder.writer.unlink(missing_ok=True)
        lock.release()


@contextmanager
def keeping(folder: RunFolder) -> Iterator[None]:
    """While entered, nobody else replaces what is beside a run's training: a report, an evaluation, a sample.

    Training may go on meanwhile, and only waits before it clears away what killed writers left.

    Raises:
        OSError: the folder cannot be written, or somebody else did not come to an end.
    """
    try:
        lock = _acquired(folder.keeping, _LONGEST_KEEPING)
    except Timeout as problem:
        raise TimeoutError(f"another process has been writing to {folder.path} for long") from problem
    try:
        yield
    finally:
        lock.release()


def write_beside(folder: RunFolder, path: Path, content: str | bytes) -> None:
    """Replaces a file of a run that is no part of its training.

    Raises:
        UserError: it cannot be written.
    """
    with reported(path), keeping(folder):
        write_durably(path, content)


def save_beside(folder: RunFolder, path: Path, content: str) -> None:
    """Does the same, or warns that it could not: what took hours is worth printing without it."""
    try:
        write_beside(folder, path, content)
    except UserError as problem:
        warnings.warn(f"could not save {path.name}: {problem}", stacklevel=2)


def writer_of(folder: RunFolder) -> Writer | None:
    """Who writes a run at the moment; None where nobody does, or did not say so."""
    return None if _is_free(folder) else _read(folder)


def check_unused(folder: RunFolder) -> None:
    """Raises a RunInUse that names the process which writes a run, where one does."""
    if folder.lock.exists():
        _locked(folder).release()


def lock_files(folder: RunFolder) -> set[Path]:
    """What locks leave in a folder."""
    every = (folder.lock, folder.keeping)
    return {*every, *map(_marker, every), folder.writer}


def _locked(folder: RunFolder) -> BaseFileLock:
    try:
        return _acquired(folder.lock, _PATIENCE)
    except Timeout as problem:
        writer = _read(folder)
        gone = f"; if it is gone, remove {_marker(folder.lock)}" if _marker(folder.lock).exists() else ""
        raise RunInUse(
            f"the run {folder.path} is being written by {writer or 'another process'}; "
            f"wait until that has ended, or stop it{gone}"
        ) from problem
    except OSError as problem:
        raise unwritable(folder.path, problem) from problem


def _is_free(folder: RunFolder) -> bool:
    if not folder.lock.exists():
        return True
    try:
        _acquired(folder.lock, 0.0).release()
    except OSError as problem:
        return not isinstance(problem, Timeout)  # what may not be locked is not asked further
    return True


def _acquired(path: Path, patience: float) -> BaseFileLock:
    """A lock that is held.

    Raises:
        Timeout: somebody else holds it.
        OSError: the file cannot be made.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=patience)
    except OSError as problem:
        if problem.errno not in _NO_LOCKS:
            raise
        lock = SoftFileLock(_marker(path))
        lock.acquire(timeout=patience)
    return lock


def _marker(lock: Path) -> Path:
    return lock.with_name(f"{lock.name}.marker")


def _read(folder: RunFolder) -> Writer | None:
    try:
        return Writer(**read_json(folder.writer, dict))
    except (UserError, TypeError):
        return None
