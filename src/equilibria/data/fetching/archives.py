"""The files inside an archive, read as streams: nothing is unpacked under a name that the archive chose, nor for ever.

Whatever is wrong with an archive is found where it is opened or read, and is a `UserError` that names it; an error of
who takes a stream, such as a full disk, stays what it is.
"""

import bz2
import gzip
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tarfile import EOFHeaderError, HeaderError, ReadError  # pyright: ignore[reportAttributeAccessIssue]
from typing import IO, Any, Self, cast

from equilibria.errors import UserError, printable

Take = Callable[[str, IO[bytes]], None]

_RATIO = 100
_ALWAYS = 1 << 26
"""An archive may unpack to as many times its size, and to as many bytes in any case. Text packs to about a tenth."""

_BLOCK = 1 << 16

_COMPRESSED: Mapping[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"\xfd7zXZ\0": lzma.open,
    b"BZh": bz2.open,
}
"""How compressed files begin, and what opens them."""


def unpack(path: Path, name: str, take: Take) -> None:
    """Hands over the files in a zip or tar archive, or the one file that a compressed or plain file is.

    What a file is, its content says, not its name; only inside an archive `.gz` says that one is compressed. Links,
    devices and hidden files, which some systems add, are left out.

    Args:
        path: the archive.
        name: what the file is called where it came from.
        take: called with each file's name, without folders and the ending `.gz`, and a stream of its bytes.

    Raises:
        UserError: the archive is damaged, of a kind that cannot be read, or unpacks to more than any text does.
    """
    most = max(_ALWAYS, _RATIO * path.stat().st_size)
    budget = _Budget(name, most)
    members = _members(path, name, _Budget(name, most))
    while True:
        with _damage(name):
            member = next(members, None)
        if member is None:
            return
        base = base_name(member[0]).removesuffix(".gz")
        if not base.startswith("."):
            take(base, cast(IO[bytes], _Bounded(member[1], budget)))


def base_name(remote: str) -> str:
    """The last part of a name that somebody else chose: to be shown and to tell splits by, never to write to."""
    return printable(remote.replace("\\", "/").rstrip("/").rpartition("/")[2])[:100]


def _members(path: Path, name: str, budget: "_Budget") -> Iterator[tuple[str, IO[bytes]]]:
    """The files inside; the budget is for all that a packed tar archive consists of."""
    magic = _beginning(path, open, 6)
    if magic.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if not entry.is_dir():
                    yield _member(entry.filename, archive.open(entry))
        return
    opener = next((opener for beginning, opener in _COMPRESSED.items() if magic.startswith(beginning)), open)
    is_tar = _is_tar(_beginning(path, opener, tarfile.BLOCKSIZE))
    with opener(path, "rb") as stream:
        if not is_tar:
            yield name, stream
            return
        bounded = cast(IO[bytes], _Bounded(stream, budget))
        with tarfile.open(fileobj=bounded, mode="r|", tarinfo=_Member) as archive:
            for entry in archive:
                if entry.isreg() and (content := archive.extractfile(entry)) is not None:
                    yield _member(entry.name, content)
        while bounded.read(_BLOCK):
            pass  # the checksums of what is compressed come last


def _member(name: str, content: IO[bytes]) -> tuple[str, IO[bytes]]:
    return name, cast(IO[bytes], gzip.open(content)) if name.endswith(".gz") else content


def _beginning(path: Path, opener: Callable[..., Any], size: int) -> bytes:
    with opener(path, "rb") as file:
        return file.read(size)


def _is_tar(header: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return False
    return True


class _Member(tarfile.TarInfo):
    """A file in a tar archive that ends where it says so: `tarfile` takes what is no header for the end."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile)
        except HeaderError as problem:
            if isinstance(problem, EOFHeaderError):
                raise
            raise ReadError(f"no header: {problem}") from problem


class _Budget:
    """How many bytes an archive may still unpack to."""

    def __init__(self, name: str, most: int) -> None:
        self.name = name
        self._most = self._left = most

    def spend(self, size: int) -> None:
        """Raises UserError where that is too much."""
        self._left -= size
        if self._left < 0:
            raise UserError(
                f"{self.name} unpacks to more than {self._most:,} bytes, as no text of its size does; if you trust it, "
                f'unpack it yourself and read the folder (data.source = "folder")'
            )


class _Bounded:
    """What an archive unpacks to, read within a budget."""

    def __init__(self, stream: IO[bytes], budget: _Budget) -> None:
        self._stream, self._budget = stream, budget

    def read(self, size: int) -> bytes:
        """The next bytes, at most `size` of them; none at the end."""
        with _damage(self._budget.name):
            content = self._stream.read(size)
        self._budget.spend(len(content))
        return content


@contextmanager
def _damage(name: str) -> Iterator[None]:
    """What the readers of archives raise, which are most kinds of errors that there are, says that one is damaged."""
    try:
        yield
    except UserError:
        raise
    except (NotImplementedError, RuntimeError) as problem:  # of zipfile: a method it lacks, or a password
        raise UserError(f"{name} cannot be unpacked ({problem})") from problem
    except Exception as problem:
        raise UserError(
            f"{name} is a damaged archive ({problem or type(problem).__name__}); fetch it again"
        ) from problem
