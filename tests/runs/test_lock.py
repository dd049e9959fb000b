"""The lock on a run, held by real processes."""

import errno
import fcntl
import os
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from equilibria.runs import lock
from equilibria.runs.folder import RunFolder
from equilibria.runs.lock import RunInUse, check_unused, keeping, writer_of, writing


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run's folder; who meets its writer does not wait."""
    monkeypatch.setattr(lock, "_PATIENCE", 0.0)
    (tmp_path / "run").mkdir()
    return RunFolder(tmp_path / "run")


@pytest.fixture
def holder(folder: RunFolder, request: pytest.FixtureRequest) -> int:
    """Another process, which writes the run until it is killed."""
    return held_by_another(folder, request.addfinalizer)


def held_by_another(folder: RunFolder, afterwards: Callable[[Callable[[], None]], None]) -> int:
    read, write = os.pipe()
    child = os.fork()
    if not child:
        with writing(folder):
            os.write(write, b"!")
            signal.pause()
        os._exit(0)
    os.read(read, 1)
    afterwards(lambda: kill(child))
    return child


def kill(child: int) -> None:
    try:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    except (ProcessLookupError, ChildProcessError):
        return  # the test did


def refused(folder: RunFolder) -> str:
    with pytest.raises(RunInUse) as caught, writing(folder):
        pass
    return str(caught.value)


def test_the_second_writer_is_told_who_the_first_is(folder: RunFolder, holder: int) -> None:
    message = refused(folder)
    assert f"{folder.path} is being written by process {holder} on {socket.gethostname()} since 20" in message
    assert "\n" not in message
    with pytest.raises(RunInUse, match=f"process {holder} "):
        check_unused(folder)
    writer = writer_of(folder)
    assert writer is not None
    assert writer.pid == holder


def test_a_killed_writer_is_no_obstacle(folder: RunFolder, holder: int) -> None:
    kill(holder)
    assert folder.writer.exists(), "it could not clear away what it had written"
    assert writer_of(folder) is None
    check_unused(folder)
    with writing(folder):
        writer = writer_of(folder)
        assert writer is not None
        assert writer.pid == os.getpid()
    assert not folder.writer.exists()
    assert writer_of(folder) is None


def test_the_lock_moves_with_the_folder_and_a_copy_is_free(folder: RunFolder, holder: int, tmp_path: Path) -> None:
    shutil.copytree(folder.path, tmp_path / "copy")
    with writing(RunFolder(tmp_path / "copy")):
        pass
    moved = RunFolder(folder.path.rename(tmp_path / "moved"))
    assert f"process {holder} " in refused(moved)
    (tmp_path / "link").symlink_to(moved.path)
    assert f"process {holder} " in refused(RunFolder(tmp_path / "link"))


def test_those_who_ask_make_no_files(folder: RunFolder, tmp_path: Path) -> None:
    for one in (folder, RunFolder(tmp_path / "absent")):
        assert writer_of(one) is None
        check_unused(one)
    assert not any(folder.path.iterdir())
    assert not (tmp_path / "absent").exists()


def test_a_report_is_kept_beside_training_and_one_at_a_time(
    folder: RunFolder, holder: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_LONGEST_KEEPING", 0.0)
    with keeping(folder), pytest.raises(TimeoutError, match="another process"), keeping(folder):
        pass
    with keeping(folder):
        pass


def test_where_the_file_system_has_no_locks_a_marker_stands_in(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    def lockless(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", lockless)
    with writing(folder):
        assert f"process {os.getpid()} " in refused(folder)
        assert writer_of(folder) is not None
    assert writer_of(folder) is None
    holder = held_by_another(folder, request.addfinalizer)
    assert refused(folder).endswith("if it is gone, remove " + str(folder.path / ".lock.marker"))
    kill(holder)
    monkeypatch.setattr(lock, "_PATIENCE", 5.0)
    with writing(folder):
        pass
