"""One file from the web, whole and verified or not at all.

A download goes to a part file and is renamed once size and digest are right. A broken one is resumed with `Range` and
`If-Range`, in this call or a later one; a file that changed on the server starts over.
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
from dataclasses import dataclass
from io import FileIO, RawIOBase
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from equilibria.data.progress import UNWATCHED, Progress
from equilibria.errors import UserError
from equilibria.files.durable import rename_durably, write_durably
from equilibria.files.formats import read_json

Result = TypeVar("Result")

_BLOCK = 1 << 18
_LONGEST_WAIT = 60.0
_AGENT = "equilibria"  # some servers turn away urllib's own name
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_DIGESTS = {"md5": 32, "sha1": 40, "sha256": 64, "sha512": 128}


@dataclass(frozen=True)
class RemoteFile:
    """A file on the web.

    Args:
        urls: mirrors of the same bytes, tried in this order.
        digest: of its bytes, as `"sha256:…"` (or md5, sha1, sha512); None if unknown.
        size: in bytes; None if unknown.

    Raises:
        UserError: no address, one that is not an HTTP(S) URL, or a malformed digest.
    """

    urls: tuple[str, ...]
    digest: str | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        if not self.urls:
            raise UserError("a file to fetch needs a URL")
        for url in self.urls:
            if not _is_http(url):
                raise UserError(f"{url!r} is not an HTTP(S) URL; give one that begins with https:// or http://")
        if self.digest is not None:
            algorithm, _, value = self.digest.partition(":")
            if _DIGESTS.get(algorithm) != len(value) or value.strip("0123456789abcdef"):
                mend = "write it as sha256: and 64 lowercase hexadecimal digits"
                raise UserError(f"{self.digest!r} is not a digest; {mend}")


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        is_plain = url.isascii() and url.isprintable() and " " not in url  # all else is written as %XX
        return is_plain and parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of the host or the port
        return False


class UnwritableError(UserError):
    """The disk is full or cannot be written."""


class TransientError(Exception):
    """An error worth another attempt, after at least `wait` seconds."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True)
class Patience:
    """Retry policy.

    Attributes:
        attempts: failures in a row without progress before giving up.
        first_wait: seconds before the second attempt; doubles with each, up to a minute.
        timeout: seconds without a byte after which a connection counts as broken.
    """

    attempts: int = 6
    first_wait: float = 1.0
    timeout: float = 30.0

    def retry(
        self, work: Callable[[], Result], name: str, progress: Progress, done: Callable[[], int] = lambda: 0
    ) -> Result:
        """Calls `work` again after each `TransientError`; raises a UserError after too many in a row.

        Args:
            name: of the remote thing, for messages.
            done: bytes so far of work that is resumed; more of them reset the count of failures.
        """
        failures, furthest = 0, done()
        while True:
            try:
                return work()
            except TransientError as problem:
                failures = 1 if done() > furthest else failures + 1
                furthest = max(furthest, done())
                if failures >= self.attempts:
                    kept = f"; {done():,} bytes are kept, run the same command to resume" * (done() > 0)
                    raise UserError(f"{name}: {problem}, {failures} times in a row{kept}") from problem
                wait = min(_LONGEST_WAIT, max(problem.wait, self.first_wait * 2 ** (failures - 1)))
                progress.say(f"{name}: {problem}; trying again in {wait:.3g} s")
                time.sleep(wait)


PATIENCE = Patience()


@dataclass(frozen=True)
class Fetched:
    """A fetched file; `verified` says whether its digest was known before, or is trusted this first time."""

    url: str
    size: int
    sha256: str
    verified: bool


def download(remote: RemoteFile, path: Path, patience: Patience = PATIENCE, progress: Progress = UNWATCHED) -> Fetched:
    """Fetches a file unless an earlier call has; resumes what an earlier call left unfinished.

    Args:
        path: where it goes; PATH.part and PATH.part.json are beside it meanwhile.
        patience: with transient errors (5xx, 408, 425, 429, a broken connection).

    Raises:
        UserError: no mirror has it (each answer is named), or size or digest differ. An earlier file at `path` stays.
    """
    record = path.with_name(path.name + ".json")
    earlier = _read_json(record)
    url = earlier.get("url")
    here = path.is_file() and earlier.get("size") == path.stat().st_size
    if here and url in remote.urls and earlier.get("urls") == list(remote.urls):
        with suppress(UserError):  # a file with another digest stays until a new one is fetched
            return _verified(remote, url, path)
    problems = []
    for url in remote.urls:
        try:
            transfer = _Transfer(url, remote, path.with_name(path.name + ".part"), patience, progress)
            patience.retry(transfer.attempt, url, progress, transfer.size)
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
    """Checks size and digest."""
    size = path.stat().st_size
    if remote.size not in (None, size):
        raise UserError(f"{url} has {size:,} bytes, expected {remote.size:,}; it is another file")
    if remote.digest is not None and (found := file_hash(path, remote.digest.partition(":")[0])) != remote.digest:
        raise UserError(f"{url} has the digest {found}, expected {remote.digest}; it is another file")
    return Fetched(url, size, file_hash(path, "sha256").removeprefix("sha256:"), remote.digest is not None)


def file_hash(path: Path, algorithm: str) -> str:
    """The digest of a file as `"algorithm:hex"`."""
    with path.open("rb") as file:
        return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"


class _Transfer:
    """A download of one URL into a part file, resumable between attempts.

    Notes beside the part say which version of the file it belongs to: the URL, the server's validator, the full size.
    """

    def __init__(self, url: str, remote: RemoteFile, part: Path, patience: Patience, progress: Progress) -> None:
        self.part, self._url, self._remote = part, url, remote
        self._patience, self._progress = patience, progress
        self._notes = part.with_name(part.name + ".json")

    def forget(self) -> None:
        """Removes the part and the notes on it."""
        self.part.unlink(missing_ok=True)
        self._notes.unlink(missing_ok=True)

    def size(self) -> int:
        """Bytes of the part."""
        return self.part.stat().st_size if self.part.is_file() else 0

    def attempt(self) -> None:
        """Fetches what the part lacks; raises a TransientError if that breaks off."""
        version = self._known()
        offset = self.size()
        if version and offset and offset == version["size"]:
            return
        headers = {"User-Agent": _AGENT, "Accept-Encoding": "identity"}
        if version and offset:
            headers["Range"] = f"bytes={offset}-"
            if version["validator"] is not None:
                headers["If-Range"] = version["validator"]
        with self._connection(headers) as response:
            self._take(response, version, offset)

    def _known(self) -> dict[str, Any]:
        """The version that the part belongs to, if it can be resumed safely; else empty."""
        match _read_json(self._notes):
            case {"url": self._url, "validator": None | str() as validator, "size": None | int()} as version:
                return version if validator is not None or self._remote.digest is not None else {}
        return {}

    @contextmanager
    def _connection(self, headers: dict[str, str]) -> Iterator[http.client.HTTPResponse]:
        """A response; all errors become a TransientError or a UserError."""
        request = urllib.request.Request(self._url, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=self._patience.timeout) as response:
                yield response
        except urllib.error.HTTPError as answer:
            answer.close()
            if answer.code == 416:
                self.forget()
                raise TransientError("the server has fewer bytes than were fetched") from answer
            reason = f"the server answers {answer.code} {answer.reason}"
            if answer.code in _TRANSIENT:
                raise TransientError(reason, _seconds(answer.headers.get("Retry-After"))) from answer
            raise UserError(f"{self._url}: {reason}; check the address, or give another with --url") from answer
        except urllib.error.URLError as problem:
            if isinstance(problem.reason, ssl.SSLCertVerificationError):
                raise UserError(f"{self._url}: its certificate is not valid ({problem.reason})") from problem
            reason = getattr(problem.reason, "strerror", None) or problem.reason
            raise TransientError(f"no connection ({reason})") from problem
        except (http.client.HTTPException, OSError) as problem:
            raise TransientError(f"the connection broke ({problem or type(problem).__name__})") from problem

    def _take(self, response: http.client.HTTPResponse, version: dict[str, Any], offset: int) -> None:
        """Writes a response to its place in the part."""
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding != "identity":
            raise UserError(f"{self._url} comes encoded as {encoding}, which was not requested; give another URL")
        if response.status == 206:
            begin, size = _range(response.headers.get("Content-Range"))
            validator = _validator(response.headers) or version.get("validator")
            if begin != offset or version != {"url": self._url, "validator": validator, "size": size}:
                self.forget()
                raise TransientError("the server sends another range than was requested")
        else:
            offset, size = 0, response.length
            self._begin(response, size)
        with self._progress.bar(f"fetching {self._url}", size) as advance:
            advance(offset)
            self._write(response, offset, advance)
        if size is not None and self.size() != size:
            raise TransientError(f"the connection broke off after {self.size():,} of {size:,} bytes")

    def _begin(self, response: http.client.HTTPResponse, size: int | None) -> None:
        """Starts a new part and records its version."""
        self.forget()
        if size is None and not response.chunked and self._remote.digest is None:
            found = "the server does not say how long the file is, so a truncated one would go unnoticed"
            raise UserError(f"{self._url}: {found}; give its --digest")
        if None not in (size, self._remote.size) and size != self._remote.size:
            raise UserError(f"{self._url} has {size:,} bytes, expected {self._remote.size:,}")
        version = {"url": self._url, "validator": _validator(response.headers), "size": size}
        with _disk(self._notes):
            write_durably(self._notes, json.dumps(version))

    def _write(self, response: http.client.HTTPResponse, offset: int, advance: Callable[[int], None]) -> None:
        with _disk(self.part):
            file = FileIO(self.part, "r+" if offset else "w", opener=_without_links)
        with file:
            file.seek(offset)
            while block := response.read(_BLOCK):
                offset += len(block)
                if self._remote.size is not None and offset > self._remote.size:
                    raise UserError(f"{self._url} has more than the expected {self._remote.size:,} bytes")
                with _disk(self.part):
                    _write_all(file, block)
                advance(len(block))
            with _disk(self.part):
                os.fsync(file.fileno())


def _without_links(path: str, flags: int) -> int:
    """Opens a file, but not a symbolic link."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _write_all(file: RawIOBase, block: bytes) -> None:
    """Writes unbuffered: closing a file on a full disk would write a buffer again."""
    rest = memoryview(block)
    while rest:
        rest = rest[file.write(rest) :]


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        raise UnwritableError(f"{path} cannot be written ({problem.strerror or problem})") from problem


def _validator(headers: Any) -> str | None:
    """What identifies a version of a file: a strong ETag, or else the time of the last change."""
    tag = headers.get("ETag")
    return headers.get("Last-Modified") if tag is None or tag.startswith("W/") else tag


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
    """The object in a file; empty if it cannot be read."""
    with suppress(UserError):
        return read_json(path, dict)
    return {}
