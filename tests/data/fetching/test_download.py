"""Downloads over real sockets: whole and right, or an error and nothing."""

import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from equilibria.data.fetching.download import Patience, RemoteFile, download
from equilibria.errors import UserError
from loopback import Fault, Loopback, Served, serving
from watching import Watcher

CONTENT = random.Random(0).randbytes(1_000_000)
SHA256 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
QUICK = Patience(attempts=3, first_wait=0.001, timeout=5)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as server:
        yield server


def ranges(server: Loopback) -> list[str | None]:
    return [begin for _, _, begin in server.requests]


def left(path: Path) -> set[str]:
    return {other.name for other in path.parent.iterdir()} - {path.name, f"{path.name}.json"}


@pytest.mark.parametrize("digest", [SHA256, f"md5:{hashlib.md5(CONTENT).hexdigest()}", None])
@pytest.mark.parametrize("length", ["known", "chunked"])
def test_a_file_arrives_whole(server: Loopback, tmp_path: Path, digest: str | None, length: str) -> None:
    server.files["/file"] = Served(CONTENT, length=length)
    path, watcher = tmp_path / "file", Watcher()
    remote = RemoteFile((server.address + "/file",), digest, None if digest is None else len(CONTENT))
    fetched = download(remote, path, QUICK, watcher)
    assert path.read_bytes() == CONTENT
    assert fetched.sha256 == SHA256.removeprefix("sha256:")
    assert (fetched.size, fetched.verified) == (len(CONTENT), digest is not None)
    assert sum(watcher.bars[0][2]) == len(CONTENT)
    assert left(path) == set()
    assert download(remote, path, QUICK) == fetched
    assert len(server.requests) == 1  # the second did not ask again


def test_a_connection_that_breaks_is_gone_on_with(server: Loopback, tmp_path: Path) -> None:
    url = server.serve("/file", CONTENT, *(Fault(after=200_000) for _ in range(4)))
    download(RemoteFile((url,)), tmp_path / "file", QUICK)  # more breaks than attempts: each brought something
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert ranges(server) == [None, *(f"bytes={part * 200_000}-" for part in (1, 2, 3, 4))]


def test_a_later_call_goes_on_with_what_is_here(server: Loopback, tmp_path: Path) -> None:
    url = server.serve("/file", CONTENT, Fault(after=300_000), Fault(status=503), Fault(status=503))
    path, remote = tmp_path / "file", RemoteFile((url,))
    with pytest.raises(UserError, match=r"503 .*3 times in a row; 300,000 bytes are kept"):
        download(remote, path, QUICK)
    assert not path.exists()
    download(remote, path, QUICK)
    assert path.read_bytes() == CONTENT
    assert ranges(server)[-1] == "bytes=300000-"


@pytest.mark.parametrize(
    ("served", "begin"),
    [
        (Served(CONTENT), "bytes=300000-"),  # its ETag is another: If-Range makes the server send all of it
        (Served(CONTENT, etag=None, modified="Sat, 21 Nov 2026 06:00:00 GMT"), "bytes=300000-"),
        (Served(CONTENT, ranges=False), "bytes=300000-"),
        (Served(CONTENT, etag=None), "bytes=300000-"),
    ],
)
def test_a_file_that_changed_begins_anew(server: Loopback, tmp_path: Path, served: Served, begin: str) -> None:
    url = server.serve("/file", CONTENT[::-1], Fault(after=300_000), *[Fault(status=500)] * 2)
    path, remote = tmp_path / "file", RemoteFile((url,))
    with pytest.raises(UserError):
        download(remote, path, QUICK)
    server.files["/file"] = served
    if served.etag is None and served.modified is None:
        server.files["/file"].headers["ETag"] = 'W/"weak"'  # says nothing of the bytes
    download(remote, path, QUICK)
    assert path.read_bytes() == CONTENT
    assert ranges(server)[3] == begin


def test_without_a_validator_only_a_digest_allows_to_go_on(server: Loopback, tmp_path: Path) -> None:
    for name, digest, begin in (("a", None, None), ("b", SHA256, "bytes=300000-")):
        server.requests.clear()
        server.files["/file"] = Served(CONTENT, etag=None, faults=[Fault(after=300_000)])
        download(RemoteFile((server.address + "/file",), digest), tmp_path / name, QUICK)
        assert (tmp_path / name).read_bytes() == CONTENT
        assert ranges(server) == [None, begin]


def test_what_never_comes_further_ends(server: Loopback, tmp_path: Path) -> None:
    server.files["/file"] = Served(CONTENT, length="chunked", ranges=False, faults=[Fault(after=300_000)] * 50)
    with pytest.raises(UserError, match=r"the connection broke .*3 times in a row"):
        download(RemoteFile((server.address + "/file",)), tmp_path / "file", QUICK)
    assert len(server.requests) == 3
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429, 408])
def test_what_passes_is_waited_for(server: Loopback, tmp_path: Path, status: int) -> None:
    watcher = Watcher()
    url = server.serve("/file", CONTENT, Fault(status=status), Fault(status=status, headers={"Retry-After": "0.01"}))
    download(RemoteFile((url,)), tmp_path / "file", QUICK, watcher)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert [line.rpartition("; ")[2] for line in watcher.said] == [
        "trying again in 0.001 s",
        "trying again in 0.01 s",
    ]


@pytest.mark.parametrize("status", [404, 403, 410])
def test_what_does_not_pass_is_an_error_at_once(server: Loopback, tmp_path: Path, status: int) -> None:
    path = tmp_path / "file"
    path.write_text("what was here before")
    url = server.serve("/file", CONTENT, Fault(status=status))
    with pytest.raises(UserError, match=rf"/file: the server answers {status} .*--url"):
        download(RemoteFile((url,)), path, QUICK)
    assert len(server.requests) == 1
    assert path.read_text() == "what was here before"


def test_a_wrong_digest_or_size_leaves_what_was_here(server: Loopback, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("what was here before")
    url = server.serve("/file", CONTENT)
    for remote, message in (
        (RemoteFile((url,), "sha256:" + "0" * 64), rf"has the digest {SHA256}, expected sha256:0000"),
        (RemoteFile((url,), "md5:" + "0" * 32), r"expected md5:0000.* was not kept"),
        (RemoteFile((url,), SHA256, len(CONTENT) + 1), "has 1,000,000 bytes, expected 1,000,001"),
    ):
        with pytest.raises(UserError, match=message):
            download(remote, path, QUICK)
        assert path.read_text() == "what was here before"
        assert "file.part" not in left(path)


def test_what_was_fetched_before_stays_until_the_right_file_has_come(server: Loopback, tmp_path: Path) -> None:
    path, url = tmp_path / "file", server.serve("/file", CONTENT)
    download(RemoteFile((url,)), path, QUICK)
    wrong = RemoteFile((url,), "sha256:" + "0" * 64)
    with pytest.raises(UserError, match=r"expected sha256:0000.* was not kept"):
        download(wrong, path, QUICK)
    assert path.read_bytes() == CONTENT
    server.serve("/file", CONTENT[::-1])
    right = RemoteFile((url,), f"sha256:{hashlib.sha256(CONTENT[::-1]).hexdigest()}")
    download(right, path, QUICK)
    assert path.read_bytes() == CONTENT[::-1]


def test_a_flipped_byte_in_what_was_here_is_found(server: Loopback, tmp_path: Path) -> None:
    url = server.serve("/file", CONTENT, Fault(after=300_000), *[Fault(status=500)] * 2)
    path, remote = tmp_path / "file", RemoteFile((url,), SHA256)
    with pytest.raises(UserError):
        download(remote, path, QUICK)
    part = bytearray((tmp_path / "file.part").read_bytes())
    part[1000] ^= 1
    (tmp_path / "file.part").write_bytes(part)
    with pytest.raises(UserError, match="has the digest"):
        download(remote, path, QUICK)
    assert not path.exists()
    download(remote, path, QUICK)
    assert path.read_bytes() == CONTENT


def test_mirrors_are_tried_in_order(server: Loopback, tmp_path: Path) -> None:
    wrong, right = server.serve("/wrong", CONTENT[1:]), server.serve("/right", CONTENT)
    missing = server.address + "/missing"
    fetched = download(RemoteFile((missing, wrong, right), SHA256), tmp_path / "file", QUICK)
    assert fetched.url == right
    with pytest.raises(UserError, match=r"missing: the server answers 404 .*/wrong has the digest"):
        download(RemoteFile((missing, wrong), SHA256), tmp_path / "other", QUICK)


def test_an_end_that_nothing_proves_is_not_trusted(server: Loopback, tmp_path: Path) -> None:
    server.files["/file"] = Served(CONTENT, length="unknown", faults=[Fault(after=1000)])
    url = server.address + "/file"
    with pytest.raises(UserError, match=r"does not say how long the file is.*--digest"):
        download(RemoteFile((url,)), tmp_path / "file", QUICK)
    server.files["/file"].faults = [Fault(after=1000)]
    with pytest.raises(UserError, match="has the digest"):
        download(RemoteFile((url,), SHA256), tmp_path / "file", QUICK)
    download(RemoteFile((url,), SHA256), tmp_path / "file", QUICK)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_an_encoding_that_was_not_asked_for_is_an_error(server: Loopback, tmp_path: Path) -> None:
    server.files["/file"] = Served(CONTENT, headers={"Content-Encoding": "gzip"})
    with pytest.raises(UserError, match="comes encoded as gzip"):
        download(RemoteFile((server.address + "/file",)), tmp_path / "file", QUICK)


def test_nobody_there_is_an_error_after_some_patience(tmp_path: Path) -> None:
    with serving() as server:
        url = server.address + "/file"
    with pytest.raises(UserError, match=r"no connection \([^\[]*\), 3 times in a row"):
        download(RemoteFile((url,)), tmp_path / "file", QUICK)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((),), "needs a URL"),
        ((("ftp://host/file",),), "not an HTTP"),
        ((("file:///etc/passwd",),), "not an HTTP"),
        ((("https://host/file",), "sha256:12"), "is not a digest"),
        ((("https://host/file",), "0" * 64), "is not a digest"),
        ((("https://host/file",), "crc32:" + "0" * 8), "is not a digest"),
    ],
)
def test_impossible_files_are_errors(arguments: tuple, message: str) -> None:
    with pytest.raises(UserError, match=message):
        RemoteFile(*arguments)


FETCH = """
import sys
from pathlib import Path
from equilibria.data.fetching.download import Patience, RemoteFile, download
from equilibria.errors import UserError
try:
    download(RemoteFile((sys.argv[1],)), Path(sys.argv[2]), Patience(3, 0.001, 30))
except UserError as problem:
    sys.exit(str(problem))
"""


def fetching(url: str, path: Path, largest: int | None = None) -> subprocess.Popen[str]:
    def limit() -> None:
        if largest is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))

    command = [sys.executable, "-c", FETCH, url, str(path)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3] / "src")}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=limit)


def test_a_full_disk_is_named_and_what_came_is_kept(server: Loopback, tmp_path: Path) -> None:
    url, path = server.serve("/file", CONTENT), tmp_path / "file"
    process = fetching(url, path, largest=400_000)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "file.part cannot be written (File too large)" in errors
    assert (tmp_path / "file.part").stat().st_size == 400_000
    assert not path.exists()
    download(RemoteFile((url,)), path, QUICK)
    assert path.read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=400000-"]


def test_a_killed_download_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    path, part = tmp_path / "file", tmp_path / "file.part"
    with serving() as server:
        served = Served(CONTENT)
        server.files["/file"] = replace(served, stall=600_000)
        process = fetching(server.address + "/file", path)
        while not (part.is_file() and part.stat().st_size >= 500_000):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        here = part.stat().st_size
        server.files["/file"] = served
        download(RemoteFile((server.address + "/file",)), path, QUICK)
        assert path.read_bytes() == CONTENT
        assert ranges(server)[-1] == f"bytes={here}-"
    assert json.loads((tmp_path / "file.json").read_text())["size"] == len(CONTENT)
