"""Text files read piece by piece, and the stable hashes of splits and caches."""

import gzip
import hashlib
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from equilibria.errors import UserError

_LONGEST = 1 << 20  # characters of a line that are held in memory


def read_pieces(path: Path, as_bytes: bool = False, longest: int | None = None) -> Iterator[str]:
    """Streams a text file in pieces: lines with their ends, or parts of lines too long to hold in memory.

    A part begins with the space before its first word; only a word of `longest` characters or more is cut. The last
    line ends in a newline even if the file does not.

    Args:
        path: decompressed if its name ends in `.gz`.
        as_bytes: byte for byte: nothing is added, line ends are kept, and what is not UTF-8 becomes lone surrogates
            (`surrogateescape`).
        longest: about how many characters a part has, at most twice as many; None is a million.

    Raises:
        UserError: the file is missing, is not UTF-8 or is a damaged gzip file.
    """
    longest = longest or _LONGEST
    rest, ended = "", True
    opener = gzip.open if path.suffix == ".gz" else open
    encoding, errors, newline = ("utf-8", "surrogateescape", "\n") if as_bytes else ("utf-8-sig", "strict", None)
    with _named(path), opener(path, "rt", encoding=encoding, errors=errors, newline=newline) as file:
        while part := file.readline(longest):
            ended = part.endswith("\n")
            if ended and not rest:  # nearly all lines
                yield part
                continue
            rest += part
            if not ended and len(part) < longest:
                break  # the end of the file
            cut = len(rest) if ended else max(rest.rfind(" "), 0) or len(rest)
            yield rest[:cut]
            rest = rest[cut:]
    if tail := rest if ended or as_bytes else rest + "\n":
        yield tail


def text_size(path: Path) -> int:
    """The bytes of a text file, decompressed if its name ends in `.gz`; a UserError if it cannot be read."""
    with _named(path):
        if path.suffix != ".gz":
            return path.stat().st_size
        with gzip.open(path, "rb") as file:
            return sum(len(block) for block in iter(lambda: file.read(_LONGEST), b""))


def file_digest(path: Path) -> str:
    """The hex digest of a file's bytes, read in pieces; a UserError if it cannot be read."""
    with _named(path), path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


def text_digest(parts: Iterable[str]) -> str:
    """The hex digest of a sequence of strings, including their boundaries."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()


def stable_fraction(key: str) -> float:
    """A number in [0, 1) that depends on `key` alone, in every process and on every machine."""
    return int(text_digest([key])[:13], 16) / 16**13


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turns errors of reading a file into a UserError."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason}); convert it to UTF-8") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is a damaged gzip file ({error}); copy or compress it again") from error
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; check the path") from error
    except IsADirectoryError as error:
        raise UserError(f"{path} is a folder; name the text files in it") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
