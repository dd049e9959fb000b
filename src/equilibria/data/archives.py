"""The files inside an archive, read as streams: nothing is unpacked under a name that the archive chose."""

import gzip
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, cast

from equilibria.errors import UserError

Take = Callable[[str, IO[bytes]], None]


def unpack(path: Path, name: str, take: Take) -> None:
    """Hands over the files in a zip or tar archive, or the one file that a gzip or plain file is.

    What a file is, its content says, not its name. Hidden files, which some systems add, are left out.

    Args:
        path: the archive.
        name: what the file is called where it came from.
        take: called with each file's name, without folders, and a stream of its bytes.

    Raises:
        UserError: the archive is damaged, or of a kind that cannot be read.
    """
    try:
        for inner, stream in _members(path, name):
            base = PurePosixPath(inner).name
            if not base.startswith("."):
                take(base, stream)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, gzip.BadGzipFile) as problem:
        raise UserError(f"{name} is a damaged archive ({problem}); fetch it again") from problem
    except (NotImplementedError, RuntimeError) as problem:  # of zipfile: a method it lacks, or a password
        raise UserError(f"{name} cannot be unpacked ({problem})") from problem


def _members(path: Path, name: str) -> Iterator[tuple[str, IO[bytes]]]:
    if _begins_with(path, b"PK\x03\x04"):
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if not entry.is_dir():
                    with archive.open(entry) as stream:
                        yield entry.filename, stream
    elif tarfile.is_tarfile(path):
        with tarfile.open(path) as archive:
            for entry in archive:
                if (stream := archive.extractfile(entry)) is not None and entry.isfile():
                    yield entry.name, stream
    elif _begins_with(path, b"\x1f\x8b"):
        with gzip.open(path) as stream:
            yield name.removesuffix(".gz"), cast(IO[bytes], stream)
    else:
        with path.open("rb") as stream:
            yield name, stream


def _begins_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic
