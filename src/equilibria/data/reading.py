"""Reading text files line by line, and the stable hashes that splits and caches rest on."""

import gzip
import hashlib
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from equilibria.errors import UserError


def read_lines(path: Path) -> Iterator[str]:
    """Streams the lines of a UTF-8 text file, without their ends; decompresses where the name ends in `.gz`.

    Raises:
        UserError: the file is missing, is not UTF-8 or is a damaged gzip file.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig") as file:
            for line in file:
                yield line.removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason}); convert it to UTF-8") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is a damaged gzip file ({error}); copy or compress it again") from error
    except OSError as error:
        raise _unreadable(path, error) from error


def file_digest(path: Path) -> str:
    """The hex digest of a file's bytes, read in pieces.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()[:32]
    except OSError as error:
        raise _unreadable(path, error) from error


def text_digest(parts: Iterable[str]) -> str:
    """The hex digest of a sequence of strings; where one ends and the next begins counts."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()


def stable_fraction(key: str) -> float:
    """A number in [0, 1) that depends on `key` alone, the same in every process and on every machine."""
    return int(text_digest([key])[:13], 16) / 16**13


def _unreadable(path: Path, error: OSError) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path} does not exist; check the path")
    return UserError(f"{path} cannot be read: {error.strerror or error}")
