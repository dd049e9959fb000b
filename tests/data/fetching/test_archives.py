"""Archives that are hostile: nothing is followed, nothing grows for ever, and who takes a file has its own errors."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from equilibria.data.fetching.archives import base_name, unpack
from equilibria.errors import UserError
from hostile import link, tarred, written, zipped

FILES = {"a/train.txt": b"the cat sat\n" * 99, "b/valid.txt": b"the dog\n"}
TAKEN = {"train.txt": FILES["a/train.txt"], "valid.txt": FILES["b/valid.txt"]}
NOTHING = 70 << 20


def unpacked(path: Path, name: str = "text") -> dict[str, bytes]:
    """The files in an archive, read in blocks."""
    found = {}

    def take(name: str, stream: IO[bytes]) -> None:
        found[name] = b"".join(iter(lambda: stream.read(1 << 16), b""))

    unpack(path, name, take)
    return found


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz", "w:bz2"])
@pytest.mark.parametrize(
    "entry",
    [
        link("train.txt", "/etc/passwd"),
        link("test.txt", "nowhere"),
        link("test.txt", "test.txt"),
        link("test.txt", "nowhere", tarfile.LNKTYPE),
        link("test.txt", "test.txt", tarfile.LNKTYPE),
        link("test.txt", "a/train.txt", tarfile.LNKTYPE),
        link("train.txt", "", tarfile.FIFOTYPE),
        link("train.txt", "", tarfile.CHRTYPE),
        link("train.txt", "", tarfile.DIRTYPE),
    ],
)
def test_links_and_devices_are_left_out(tmp_path: Path, mode: str, entry: tarfile.TarInfo) -> None:
    assert unpacked(written(tmp_path, "text", tarred(FILES, mode, entry))) == TAKEN


def zip_with_empty_name() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        entry = zipfile.ZipInfo("x")
        entry.filename = ""
        archive.writestr(entry, b"")
    return buffer.getvalue()


def sparse(**headers: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        entry = tarfile.TarInfo("train.txt")
        entry.pax_headers = {f"GNU.sparse.{name}": value for name, value in headers.items()}
        archive.addfile(entry)
    return buffer.getvalue()


def torn(size: int) -> bytes:
    """A tar archive cut off, at the border of a block so that nothing in it is incomplete."""
    return tarred(FILES, "w")[:size]


@pytest.mark.parametrize(
    "content",
    [
        zip_with_empty_name(),
        sparse(size="x"),
        sparse(major="1", minor="0", name="train.txt", realsize="3"),
        torn(2048),
        torn(2048) + b"x" * 512 + torn(4096)[2048:],
        bz2.compress(tarred(FILES, "w"))[:-20],
        lzma.compress(tarred(FILES, "w"))[:-20],
        tarred(FILES, "w:gz")[:-4],
        bz2.compress(FILES["a/train.txt"])[:-8] + b"12345678",
        link("./LongLink", "", b"L").tobuf(tarfile.GNU_FORMAT) * 3000 + tarred(FILES, "w"),
    ],
)
def test_damage_of_every_kind_is_a_sentence(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UserError, match=r"text (is a damaged archive|cannot be unpacked)"):
        unpacked(written(tmp_path, "text", content))


def bomb_of_tar(compress: Callable[[bytes], bytes], size: int = NOTHING, name: str = "train.txt") -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size = size
    return compress(entry.tobuf() + bytes(size + -size % 512 + 1024))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.txt.gz", gzip.compress(bytes(NOTHING), 1)),
        ("train.txt.xz", lzma.compress(bytes(NOTHING), preset=0)),
        ("train.txt.bz2", bz2.compress(bytes(NOTHING), 1)),
        ("text.zip", zipped({"train.txt": bytes(NOTHING)})),
        ("text.zip", zipped({f"{number}.txt": bytes(NOTHING // 5) for number in range(6)})),
        ("nested.zip", zipped({"train.txt.gz": gzip.compress(bytes(NOTHING), 1)})),
        ("text.tar.gz", bomb_of_tar(lambda content: gzip.compress(content, 1))),
        ("passed over", bomb_of_tar(lambda content: gzip.compress(content, 1), name=".hidden")),
        ("sparse.tar", sparse(size=str(NOTHING), numblocks="1", map=f"{NOTHING},0")),
    ],
)
def test_a_bomb_is_not_unpacked(tmp_path: Path, name: str, content: bytes) -> None:
    assert len(content) < 1 << 20
    with pytest.raises(
        UserError, match=rf"{name} unpacks to more than 67,108,864 bytes, which no text of its size does"
    ):
        unpacked(written(tmp_path, "text", content), name)


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, bz2.compress, bytes])
def test_one_file_that_is_compressed_or_not(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    assert unpacked(written(tmp_path, "text", pack(b"the cat\n")), "train.txt.gz") == {"train.txt": b"the cat\n"}


def test_a_compressed_file_in_an_archive_is_decompressed(tmp_path: Path) -> None:
    files = {"a/train.txt.gz": gzip.compress(b"the cat\n"), "valid.txt": b"the dog\n"}
    for archive in (zipped(files), tarred(files)):
        found = unpacked(written(tmp_path, "text", archive))
        assert found == {"train.txt": b"the cat\n", "valid.txt": b"the dog\n"}


@pytest.mark.parametrize(
    "archive",
    [zipped(FILES), tarred(FILES), tarred(FILES, "w"), gzip.compress(b"text")],
    ids=["zip", "tar.gz", "tar", "gz"],  # their bytes hold the time of day
)
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyError("mine"), RuntimeError("mine")])
def test_an_error_of_who_takes_a_file_is_not_the_archive_s(tmp_path: Path, archive: bytes, error: Exception) -> None:
    def take(name: str, stream: IO[bytes]) -> None:
        raise error

    with pytest.raises(type(error)) as found:
        unpack(written(tmp_path, "text", archive), "text", take)
    assert found.value is error


@pytest.mark.parametrize(
    ("remote", "shown"),
    [
        ("/a/train.txt", "train.txt"),
        ("/a/../../home/keys", "keys"),
        ("..\\..\\keys", "keys"),
        ("a/..", ".."),
        ("keys\0.txt", "keys\\x00.txt"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("x" * 300, "x" * 100),
        ("", ""),
    ],
)
def test_a_name_is_shown_without_what_it_could_do(remote: str, shown: str) -> None:
    assert base_name(remote) == shown
