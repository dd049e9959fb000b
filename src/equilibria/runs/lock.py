"""One process at a time writes a run; readers need no lock.

The kernel locks a file in the run folder for as long as the process lives that holds the lock, so no lock is ever
stale. It moves with the folder, and a copy of the folder is unlocked. It excludes all processes of a host, and those of
other hosts where the file system passes locks on: NFS 4, CephFS, GPFS, Lustre mounted with `flock`. If locks stay on
the host (NFS mounted with `nolock` or `local_lock`), a writer on another host goes unnoticed. If there are no locks at
all, a marker file stands in: one left by a killed process is recognised on its own host, and has to be removed by hand
on others.

The holder and the time are written beside it, for people to read only.
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
_PATIENCE = 1.0  # seconds: a mere check lets go at once, and a new writer has written its name by then
_LONGEST_KEEPING = 10.0  # seconds, enough for a file or two


@dataclass(frozen=True)
class LockHolder:
    """The process that writes a run, and since when it does; nothing of one that could not leave its name."""

    pid: int | None = None
    host: str = ""
    since: str = ""

    def __str__(self) -> str:
        return "another process" if self.pid is None else f"process {self.pid} on {self.host} since {self.since}"


class RunInUse(UserError):
    """Another process writes the run."""


@contextmanager
def writing(folder: RunFolder) -> Iterator[None]:
    """While entered, nobody else writes a run, whose folder exists. Of processes that train together, rank 0 enters.

    Raises:
        RunInUse: another process does; the message names it.
        UserError: the folder cannot be written.
    """
    lock = _locked(folder)
    try:
        me = LockHolder(os.getpid(), socket.gethostname(), datetime.now().astimezone().isoformat(" ", "seconds"))
        with suppress(OSError):  # training may free space on a full disk
            write_durably(folder.writer, json.dumps(asdict(me)) + "\n")
        yield
    finally:
        with suppress(OSError):
            folder.writer.unlink(missing_ok=True)
        lock.release()


@contextmanager
def keeping(folder: RunFolder) -> Iterator[None]:
    """While entered, nobody else replaces what is beside a run's training: a report, an evaluation, a sample.

    Training may continue meanwhile, and only waits before it removes what killed writers left.

    Raises:
        OSError: the folder cannot be written, or another process did not finish.
    """
    try:
        lock = _acquired(folder.keeping, _LONGEST_KEEPING)
    except Timeout as problem:
        raise TimeoutError(f"another process is still writing to {folder.path}") from problem
    try:
        yield
    finally:
        lock.release()


def write_beside(folder: RunFolder, path: Path, content: str | bytes) -> None:
    """Replaces a file of a run that is no part of its training; a UserError where it cannot be written."""
    with reported(path), keeping(folder):
        write_durably(path, content)


def save_beside(folder: RunFolder, path: Path, content: str) -> None:
    """Does the same, or warns that it could not: what took hours is worth printing all the same."""
    try:
        write_beside(folder, path, content)
    except UserError as problem:
        warnings.warn(f"could not save {path.name}: {problem}", stacklevel=2)


def writer_of(folder: RunFolder) -> LockHolder | None:
    """Who is writing a run; None if nobody is."""
    return None if _is_free(folder) else _read(folder)


def check_unused(folder: RunFolder) -> None:
    """Raises a RunInUse that names the process writing a run, if there is one."""
    if folder.lock.exists():
        _locked(folder).release()


def lock_files(folder: RunFolder) -> set[Path]:
    """Files that locks may leave in a folder."""
    every = (folder.lock, folder.keeping)
    return {*every, *map(_marker, every), folder.writer}


def _locked(folder: RunFolder) -> BaseFileLock:
    try:
        return _acquired(folder.lock, _PATIENCE)
    except Timeout as problem:
        gone = f"; if it is gone, remove {_marker(folder.lock)}" if _marker(folder.lock).exists() else ""
        raise RunInUse(
            f"the run {folder.path} is being written by {_read(folder)}; wait until that has ended, or stop it{gone}"
        ) from problem
    except OSError as problem:
        raise unwritable(folder.path, problem) from problem


def _is_free(folder: RunFolder) -> bool:
    if not folder.lock.exists():
        return True
    try:
        _acquired(folder.lock, 0.0).release()
    except OSError as problem:
        return not isinstance(problem, Timeout)  # no permission to lock: treat it as free
    return True


def _acquired(path: Path, patience: float) -> BaseFileLock:
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


def _read(folder: RunFolder) -> LockHolder:
    try:
        return LockHolder(**read_json(folder.writer, dict))
    except (UserError, TypeError):
        return LockHolder()
