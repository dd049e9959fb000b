"""Files and folders that are whole, and on the disk, once they have their name; until then they are not there.

A file is written under a name of its own beside its place, flushed to the disk and renamed, and the folder's list of
names is flushed after it. A process that is killed, a disk that is full and a power cut leave what was there before, or
the new file, and nothing between (Pillai et al. 2014, "All file systems are not created equal"). Every writer of this
package goes through here.
"""

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from equilibria.errors import UserError, unwritable

_SUFFIX = ".partial"
_NO_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)
"""What file systems say that cannot flush a folder; they keep its names without."""


def write_durably(path: Path, content: str | bytes | memoryview) -> None:
    """Replaces a file, or makes it with the folders it is in; text is written as UTF-8, a symbolic link replaced.

    Raises:
        OSError: it cannot be written; what was there before stays.
    """
    with replaced_file(path) as partial, partial.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)


def save_text(path: Path, text: str) -> None:
    """Does the same; a UserError says that it cannot be written."""
    with reported(path, "choose another folder"):
        write_durably(path, text)


@contextmanager
def reported(path: Path, otherwise: str = "") -> Iterator[None]:
    """Turns an OSError raised inside into the `UserError` that says why `path` cannot be written, as `unwritable`."""
    try:
        yield
    except OSError as problem:
        raise unwritable(path, problem, otherwise) from problem


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """The name of an empty file to write to, which takes the place of `path` at the end; not after an exception.

    Raises:
        OSError: as for `write_durably`.
    """
    make_folder(path.parent)
    partial = _made(path, lambda name: os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)))
    try:
        mode = partial.stat().st_mode
        yield partial
        partial.chmod(mode)  # some libraries put a file of their own there, that none but its owner may read
        flush(partial)
        rename_durably(partial, path)
    except BaseException:
        with suppress(OSError):  # what kept it from being written may keep it from being removed
            partial.unlink(missing_ok=True)
        raise


def check_vacant(path: Path) -> None:
    """Raises a UserError where a folder cannot be made: something is there, and it is not an empty folder."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists already; choose another name or remove it")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill, which at the end becomes `path`, where nothing or an empty folder is; not after an
    exception.

    Raises:
        OSError: it cannot be written, or something is there by then.
    """
    partial = unnamed_folder(path)
    try:
        yield partial
        flush_folder(partial)
        rename_durably(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def unnamed_folder(path: Path) -> Path:
    """An empty folder beside `path`, to be filled, flushed by `flush_folder` and renamed by `rename_durably`."""
    make_folder(path.parent)
    return _made(path, os.mkdir)


def rename_durably(source: Path, target: Path) -> None:
    """Renames what is on the disk already, and waits until its new name is."""
    os.replace(source, target)
    for folder in {target.parent, source.parent}:
        flush(folder)


def make_folder(path: Path) -> None:
    """Makes a folder, and those it is in, where they are missing; each is on the disk afterwards."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        flush(folder.parent)


def flush_folder(path: Path) -> None:
    """Waits until a folder, and all that is in it, is on the disk; gives its files the mode of new ones."""
    for entry in sorted(path.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            flush_folder(entry)
        elif entry.is_file():
            # Some libraries make files that none but their owner may read.
            entry.chmod(entry.stat().st_mode | path.stat().st_mode & 0o666)
            flush(entry)
    flush(path)


def flush(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as problem:
        if problem.errno not in _NO_FLUSH or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Removes what writers that were killed left in a folder. Nobody else may be writing to it."""
    for entry in leftovers(folder):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def leftovers(folder: Path) -> set[Path]:
    """What writers that were killed left in a folder, or are writing there."""
    return set(folder.glob(f".*{_SUFFIX}"))


def _made(path: Path, make: Callable[[Path], None]) -> Path:
    """A name beside `path`, once `make` has made it there: not a planted link, nor another writer's."""
    while True:
        # The name may be as long as names can be: its end makes room.
        partial = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}{_SUFFIX}")
        try:
            make(partial)
        except FileExistsError:
            continue
        return partial
