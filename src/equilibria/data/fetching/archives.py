"""The files inside an archive, as streams of bounded size: nothing is written under a name that the archive chose."""

import bz2
import gzip
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from tarfile import EOFHeaderError, HeaderError, ReadError  # pyright: ignore[reportAttributeAccessIssue]
from typing import IO, Any, Self, cast

from equilibria.errors import UserError, printable

Take = Callable[[str, IO[bytes]], None]

# An archive may unpack to 100 times its size, or to 64 MB. Text is compressed to about a tenth.
_RATIO = 100
_ALWAYS = 1 << 26
_BLOCK = 1 << 16
_COMPRESSED: Mapping[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"\xfd7zXZ\0": lzma.open,
    b"BZh": bz2.open,
}  # by the first bytes of a file


def unpack(path: Path, name: str, take: Take) -> None:
    """Calls `take` with each file of a zip or tar archive, or with the one file in a compressed or plain file.

    The content of an archive tells its kind; inside it, `.gz` marks compressed files. Links, devices and hidden files,
    which some systems add, are skipped. What `take` raises, such as for a full disk, passes through.

    Args:
        name: of the archive where it came from.
        take: called with each file's name, without folders and `.gz`, and a stream of its bytes.

    Raises:
        UserError: the archive is damaged, cannot be read, or unpacks to more than any text does.
    """
    most = max(_ALWAYS, _RATIO * path.stat().st_size)
    budget = _Budget(name, most)
    with closing(_members(path, name, _Budget(name, most))) as members:
        while True:
            with _damage(name):
                member = next(members, None)
            if member is None:
                return
            base = base_name(member[0]).removesuffix(".gz")
            if not base.startswith("."):
                take(base, _bounded(member[1], budget))


def base_name(remote: str) -> str:
    """The last part of a foreign name, to show and to recognise splits; never to write to."""
    return printable(remote.replace("\\", "/").rstrip("/").rpartition("/")[2])[:100]


def _members(path: Path, name: str, budget: "_Budget") -> Generator[tuple[str, IO[bytes]], None, None]:
    """The files inside; the budget is for all of a compressed tar archive."""
    with path.open("rb") as file:
        magic = file.read(6)
    if magic.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if not entry.is_dir():
                    with archive.open(entry) as content:
                        yield _member(entry.filename, content)
        return
    opener = next((opener for beginning, opener in _COMPRESSED.items() if magic.startswith(beginning)), open)
    with opener(path, "rb") as stream:
        is_tar = _is_tar(stream.read(tarfile.BLOCKSIZE))
        stream.seek(0)
        if not is_tar:
            yield name, stream
            return
        bounded = _bounded(stream, budget)
        with tarfile.open(fileobj=bounded, mode="r|", tarinfo=_Member) as archive:
            for entry in archive:
                if entry.isreg() and (content := archive.extractfile(entry)) is not None:
                    yield _member(entry.name, content)
        while bounded.read(_BLOCK):
            pass  # to the checksum at the end


def _member(name: str, content: IO[bytes]) -> tuple[str, IO[bytes]]:
    return name, cast(IO[bytes], gzip.open(content)) if name.endswith(".gz") else content


def _is_tar(header: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return False
    return True


class _Member(tarfile.TarInfo):
    """A file in a tar archive; unlike in `tarfile`, a damaged header is an error, not the end."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile)
        except HeaderError as problem:
            if isinstance(problem, EOFHeaderError):
                raise
            raise ReadError(f"no header: {problem}") from problem


class _Budget:
    """The bytes that an archive may still unpack to."""

    def __init__(self, name: str, most: int) -> None:
        self.name, self._most, self._left = name, most, most

    def spend(self, size: int) -> None:
        """Raises a UserError once the budget is exceeded."""
        self._left -= size
        if self._left < 0:
            raise UserError(
                f"{self.name} unpacks to more than {self._most:,} bytes, which no text of its size does; if you trust "
                f'it, unpack it yourself and read the folder (data.source = "folder")'
            )


class _Bounded:
    """A stream that is read within a budget."""

    def __init__(self, stream: IO[bytes], budget: _Budget) -> None:
        self._stream, self._budget = stream, budget

    def read(self, size: int) -> bytes:
        with _damage(self._budget.name):
            content = self._stream.read(size)
        self._budget.spend(len(content))
        return content


def _bounded(stream: IO[bytes], budget: _Budget) -> IO[bytes]:
    return cast(IO[bytes], _Bounded(stream, budget))


@contextmanager
def _damage(name: str) -> Iterator[None]:
    """Turns whatever the readers of archives raise into a UserError."""
    try:
        yield
    except UserError:
        raise
    except (NotImplementedError, RuntimeError) as problem:  # of zipfile: a method it lacks, or a password
        raise UserError(f"{name} cannot be unpacked ({problem})") from problem
    except Exception as problem:
        reason = problem or type(problem).__name__
        raise UserError(f"{name} is a damaged archive ({reason}); fetch it again") from problem
