"""One file from the web, whole and verified or not at all.

What arrives goes to a file beside the place where it belongs, and is renamed once its size and digest are right. A
download that breaks off goes on where it was, in this call and in later ones, as long as the server still has the same
file: it is asked for the rest with `Range` and `If-Range`, and a file that changed begins anew.
"""

import hashlib
import http.client
import json
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from io import FileIO, RawIOBase
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from equilibria.data.progress import UNWATCHED, Progress
from equilibria.errors import UserError
from equilibria.files.durable import rename_durably, write_durably
from equilibria.files.formats import read_json

_BLOCK = 1 << 18
_LONGEST_WAIT = 60.0
_AGENT = "equilibria"  # some servers turn away urllib's own name
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_DIGESTS = {"md5": 32, "sha1": 40, "sha256": 64, "sha512": 128}


@dataclass(frozen=True)
class RemoteFile:
    """A file on the web.

    Args:
        urls: where it is; mirrors of the same bytes, tried in this order.
        digest: of its bytes, as `"sha256:…"` (or md5, sha1, sha512); None where it is not known.
        size: in bytes; None where it is not known.

    Raises:
        UserError: no address, one that is not of the web, or a digest of another form.
    """

    urls: tuple[str, ...]
    digest: str | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        if not self.urls:
            raise UserError("a file to fetch needs an address")
        for url in self.urls:
            if not _is_web_address(url):
                raise UserError(f"{url!r} is no web address; give one that begins with https:// or http://")
        if self.digest is not None:
            algorithm, _, value = self.digest.partition(":")
            if _DIGESTS.get(algorithm) != len(value) or value.strip("0123456789abcdef"):
                raise UserError(f"{self.digest!r} is no digest; write it as sha256: and 64 small hexadecimal digits")


def _is_web_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and _is_plain(url)
    except ValueError:  # of the host or the port
        return False


def _is_plain(url: str) -> bool:
    """Whether it has only what a request may consist of; all else is written as %XX."""
    return url.isascii() and url.isprintable() and " " not in url


class UnwritableError(UserError):
    """The disk has no room, or does not let a file be written."""


@dataclass(frozen=True)
class Patience:
    """How long a server that fails is borne with.

    Attributes:
        attempts: in a row in which not a byte arrives.
        first_wait: seconds before the second attempt; each wait is twice the one before, up to a minute.
        timeout: seconds without a byte after which a connection counts as broken.
    """

    attempts: int = 6
    first_wait: float = 1.0
    timeout: float = 30.0


PATIENCE = Patience()


@dataclass(frozen=True)
class Fetched:
    """A file that is here.

    Attributes:
        url: where it came from.
        size: in bytes.
        sha256: hex digest.
        verified: whether its digest was known before; otherwise it is taken on trust this first time.
    """

    url: str
    size: int
    sha256: str
    verified: bool


def download(remote: RemoteFile, path: Path, patience: Patience = PATIENCE, progress: Progress = UNWATCHED) -> Fetched:
    """Fetches a file, or finds that an earlier call has; what an earlier call left unfinished is gone on with.

    Args:
        remote: where it is and what it must be.
        path: where it goes; beside it lie PATH.part and PATH.part.json meanwhile.
        patience: with a server that fails for now (5xx, 408, 425, 429, a broken connection).
        progress: told of bytes.

    Raises:
        UserError: no mirror has it (the answer of each is named), or what arrived is not what it must be. A file
            that was at `path` before is still there.
    """
    record = path.with_name(path.name + ".json")
    earlier = _read_json(record)
    url = earlier.get("url")
    here = path.is_file() and earlier.get("size") == path.stat().st_size
    if here and url in remote.urls and earlier.get("urls") == list(remote.urls):
        # One that is not what it must be is fetched anew, and stays until that has come.
        with suppress(UserError):
            return _verified(remote, url, path)
    problems = []
    for url in remote.urls:
        try:
            transfer = _Transfer(url, remote, path.with_name(path.name + ".part"), patience, progress)
            transfer.run()
        except UnwritableError:
            raise
        except UserError as problem:
            problems.append(str(problem))
            continue
        try:
            fetched = _verified(remote, url, transfer.part)
        except UserError as problem:
            transfer.part.unlink()
            problems.append(f"{problem} and was not kept")
            continue
        with _disk(path):
            write_durably(record, json.dumps({"url": url, "urls": remote.urls, "size": fetched.size}))
            rename_durably(transfer.part, path)
        transfer.forget()
        return fetched
    raise UserError("; ".join(problems))


def _verified(remote: RemoteFile, url: str, path: Path) -> Fetched:
    """Checks size and digest; raises UserError where a file is not as it must be."""
    size = path.stat().st_size
    wrong = None
    if remote.size not in (None, size):
        wrong = f"has {size:,} bytes, {remote.size:,} were expected"
    elif remote.digest is not None and (found := file_hash(path, remote.digest.partition(":")[0])) != remote.digest:
        wrong = f"has the digest {found}, expected {remote.digest}"
    if wrong is not None:
        raise UserError(f"{url} {wrong}; it is not the file that was asked for")
    return Fetched(url, size, file_hash(path, "sha256").removeprefix("sha256:"), remote.digest is not None)


def file_hash(path: Path, algorithm: str) -> str:
    """The digest of a file as `"algorithm:hex"`."""
    with path.open("rb") as file:
        return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"


class _PassingError(Exception):
    """What may be otherwise on the next attempt."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True)
class _Version:
    """Which file a part is of: what a server says of it, and how long it is."""

    url: str
    validator: str | None
    size: int | None


class _Transfer:
    """The way of one URL into a part file."""

    def __init__(self, url: str, remote: RemoteFile, part: Path, patience: Patience, progress: Progress) -> None:
        self.part = part
        self._url = url
        self._remote = remote
        self._patience = patience
        self._progress = progress
        self._notes = part.with_name(part.name + ".json")

    def run(self) -> None:
        """Goes on until the part is the whole file."""
        failures, furthest = 0, self._here()
        while True:
            try:
                return self._attempt()
            except _PassingError as problem:
                failures = 1 if self._here() > furthest else failures + 1
                furthest = max(furthest, self._here())
                if failures >= self._patience.attempts:
                    kept = f"; {self._here():,} bytes are kept, the same command goes on with them" * (self._here() > 0)
                    raise UserError(f"{self._url}: {problem}, {failures} times in a row{kept}") from problem
                wait = min(_LONGEST_WAIT, max(problem.wait, self._patience.first_wait * 2 ** (failures - 1)))
                self._progress.say(f"{self._url}: {problem}; trying again in {wait:.3g} s")
                time.sleep(wait)

    def forget(self) -> None:
        """Removes the part and what is known of it."""
        self.part.unlink(missing_ok=True)
        self._notes.unlink(missing_ok=True)

    def _here(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0

    def _attempt(self) -> None:
        version = self._known()
        offset = self._here()
        if version is not None and offset and offset == version.size:
            return
        headers = {"User-Agent": _AGENT, "Accept-Encoding": "identity"}
        if version is not None and offset:
            headers["Range"] = f"bytes={offset}-"
            if version.validator is not None:
                headers["If-Range"] = version.validator
        with self._connection(headers) as response:
            self._take(response, version, offset)

    def _known(self) -> _Version | None:
        """What the part is a part of, if its rest can be asked for safely."""
        match _read_json(self._notes):
            case {"url": self._url, "validator": None | str() as validator, "size": None | int() as size}:
                known = validator is not None or self._remote.digest is not None
                return _Version(self._url, validator, size) if known else None
        return None

    @contextmanager
    def _connection(self, headers: dict[str, str]) -> Iterator[http.client.HTTPResponse]:
        """An answer of the server; what goes wrong with it is passing, or an error that names it."""
        request = urllib.request.Request(self._url, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=self._patience.timeout) as response:
                yield response
        except urllib.error.HTTPError as answer:
            answer.close()
            if answer.code == 416:
                self.forget()
                raise _PassingError("the server has less than is here") from answer
            reason = f"the server answers {answer.code} {answer.reason}"
            if answer.code in _PASSING:
                raise _PassingError(reason, _seconds(answer.headers.get("Retry-After"))) from answer
            raise UserError(f"{self._url}: {reason}; check the address, or give another with --url") from answer
        except urllib.error.URLError as problem:
            if isinstance(problem.reason, ssl.SSLCertVerificationError):
                raise UserError(f"{self._url}: its certificate is not valid ({problem.reason})") from problem
            raise _PassingError(f"no connection ({problem.reason})") from problem
        except (http.client.HTTPException, OSError) as problem:
            raise _PassingError(f"the connection broke ({problem or type(problem).__name__})") from problem

    def _take(self, response: http.client.HTTPResponse, version: _Version | None, offset: int) -> None:
        """Writes what a server sends to where it belongs in the part."""
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding != "identity":
            raise UserError(f"{self._url} comes encoded as {encoding}, which was not asked for; give another address")
        if response.status == 206:
            begin, size = _range(response.headers.get("Content-Range"))
            here = _Version(self._url, _validator(response.headers) or (version and version.validator), size)
            if begin != offset or here != version:
                self.forget()
                raise _PassingError("the server sends another part than was asked for")
        else:
            offset, size = 0, response.length
            self._begin(response, size)
        with self._progress.bar(f"fetching {self._url}", size) as advance:
            advance(offset)
            self._write(response, offset, advance)
        if size is not None and self._here() != size:
            raise _PassingError(f"the connection broke off after {self._here():,} of {size:,} bytes")

    def _begin(self, response: http.client.HTTPResponse, size: int | None) -> None:
        """Notes which file the part will be of, unless it cannot be the one that is wanted."""
        self.forget()
        if size is None and not response.chunked and self._remote.digest is None:
            raise UserError(
                f"{self._url}: the server does not say how long the file is, so that one cut short could pass for "
                "whole; give its --digest"
            )
        if None not in (size, self._remote.size) and size != self._remote.size:
            raise UserError(f"{self._url} has {size:,} bytes, {self._remote.size:,} were expected")
        version = _Version(self._url, _validator(response.headers), size)
        with _disk(self._notes):
            write_durably(self._notes, json.dumps(asdict(version)))

    def _write(self, response: http.client.HTTPResponse, offset: int, advance: Callable[[int], None]) -> None:
        with _disk(self.part):
            file = FileIO(self.part, "r+" if offset else "w", opener=_without_links)
        with file:
            file.seek(offset)
            while block := response.read(_BLOCK):
                offset += len(block)
                if self._remote.size is not None and offset > self._remote.size:
                    raise UserError(f"{self._url} has more than the {self._remote.size:,} bytes that were expected")
                with _disk(self.part):
                    _write_all(file, block)
                advance(len(block))
            with _disk(self.part):
                os.fsync(file.fileno())


def _without_links(path: str, flags: int) -> int:
    """Opens a file that is really here."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _write_all(file: RawIOBase, block: bytes) -> None:
    """Writes without a buffer, which would be written again when a full disk's file is closed."""
    rest = memoryview(block)
    while rest:
        rest = rest[file.write(rest) :]


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """What goes wrong with a file here is no fault of the server's."""
    try:
        yield
    except OSError as problem:
        raise UnwritableError(f"{path} cannot be written ({problem.strerror or problem})") from problem


def _validator(headers: Any) -> str | None:
    """What tells this version of a file from others: a strong ETag, or else the time of the last change."""
    tag = headers.get("ETag")
    if tag is not None and not tag.startswith("W/"):
        return tag
    return headers.get("Last-Modified")


def _range(header: str | None) -> tuple[int | None, int | None]:
    """First byte and full size of `bytes 5-9/10`."""
    try:
        unit, _, rest = (header or "").partition(" ")
        span, _, size = rest.partition("/")
        return (int(span.split("-")[0]), int(size)) if unit == "bytes" else (None, None)
    except ValueError:
        return None, None


def _seconds(header: str | None) -> float:
    try:
        return float(header or 0)
    except ValueError:  # a date
        return 0.0


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is none."""
    try:
        return read_json(path, dict)
    except UserError:
        return {}
