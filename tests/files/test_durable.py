"""Files and folders that are there whole, and on the disk, or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from equilibria.files.durable import (
    flush,
    leftovers,
    make_folder,
    new_folder,
    remove_leftovers,
    replaced_file,
    unnamed_folder,
    write_durably,
)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is flushed and renamed, in order: `("flush", name)` and `("rename", new name)`."""
    found: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        found.append(("flush", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        fsync(descriptor)

    def noted_replace(source: Path, target: Path) -> None:
        found.append(("rename", target.name))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    return found


def full(*_: object) -> None:
    raise OSError(28, "No space left on device")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_is_flushed_before_it_has_its_name_and_the_name_after(
    tmp_path: Path, calls: list[tuple[str, str]]
) -> None:
    write_durably(tmp_path / "figures.json", "{}")
    (first, partial), *others = calls
    assert first == "flush"
    assert partial.startswith(".figures.json.")
    assert others == [("rename", "figures.json"), ("flush", tmp_path.name)]
    assert (tmp_path / "figures.json").read_text() == "{}"
    assert list(tmp_path.iterdir()) == [tmp_path / "figures.json"]


def test_new_folders_are_flushed_into_those_they_are_in(tmp_path: Path, calls: list[tuple[str, str]]) -> None:
    make_folder(tmp_path / "a" / "b")
    assert sorted(calls) == sorted([("flush", "a"), ("flush", tmp_path.name)])
    make_folder(tmp_path / "a" / "b")
    assert len(calls) == 2


def test_all_of_a_folder_is_flushed_before_it_has_its_name(tmp_path: Path, calls: list[tuple[str, str]]) -> None:
    with new_folder(tmp_path / "run") as partial:
        (partial / "inner").mkdir()
        (partial / "inner" / "weights").write_bytes(b"1")
        (partial / "recipe").write_bytes(b"2")
    assert [name for _, name in calls[:2]] == ["weights", "inner"]
    assert calls[2] == ("flush", "recipe")
    assert calls[3] == ("flush", partial.name)
    assert calls[4:] == [("rename", "run"), ("flush", tmp_path.name)]
    assert (tmp_path / "run" / "inner" / "weights").read_bytes() == b"1"


def test_an_empty_folder_is_filled_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with new_folder(tmp_path / "empty") as partial:
        (partial / "file").touch()
    assert (tmp_path / "empty" / "file").exists()
    with pytest.raises(OSError, match="not empty"), new_folder(tmp_path / "empty") as partial:
        (partial / "other").touch()
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["file"]
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    write_durably(tmp_path / "file", "before")
    with monkeypatch.context() as patch:
        patch.setattr(os, failing, full)
        with pytest.raises(OSError, match="No space"):
            write_durably(tmp_path / "file", "after")
        with pytest.raises(OSError, match="No space"), new_folder(tmp_path / "folder"):
            pass
    assert (tmp_path / "file").read_text() == "before"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_an_interruption_leaves_what_was_there(tmp_path: Path) -> None:
    write_durably(tmp_path / "file", "before")

    def interrupted() -> None:
        with replaced_file(tmp_path / "file") as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "file").read_text() == "before"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_planted_links_are_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    place = tmp_path / "run"
    place.mkdir()
    (place / "file").symlink_to(victim)
    for name in (".file.partial", "file.partial", ".file.0.partial", ".folder.0.partial"):
        (place / name).symlink_to(victim)
    names = iter(["0", "1", "0", "2"])
    monkeypatch.setattr("secrets.token_hex", lambda _: next(names))
    write_durably(place / "file", "ours")
    assert unnamed_folder(place / "folder").name == ".folder.2.partial"
    assert victim.read_text() == "precious"
    assert not (place / "file").is_symlink()


def test_all_may_read_what_they_may_read_of_other_files(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    usual = mode(tmp_path / "usual")
    with replaced_file(tmp_path / "file") as partial:
        partial.unlink()  # as libraries do that write to a file of their own and rename it
        partial.touch(0o600)
    with new_folder(tmp_path / "folder") as partial:
        (partial / "weights").touch(0o600)
    assert mode(tmp_path / "file") == mode(tmp_path / "folder" / "weights") == usual


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    write_durably(tmp_path / ("n" * 255), "")
    assert (tmp_path / ("n" * 255)).exists()


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    (unnamed_folder(tmp_path / "step-1") / "weights").touch()
    (tmp_path / ".index.json.00.partial").touch()
    for name in ("step-2", "notes.partial", ".hidden"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"step-2", "notes.partial", ".hidden"}


def test_file_systems_that_cannot_flush_folders_are_none_the_worse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(22, "Invalid argument")

    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "fsync", refuse)
    flush(tmp_path)
    with pytest.raises(OSError, match="Invalid"):
        flush(tmp_path / "file")
