"""Folders of text from archives and plain files over real sockets: whole, checked, and never touched by a failure."""

import gzip
import json
import random
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from equilibria.data.fetching.download import Patience, RemoteFile
from equilibria.data.fetching.folder import WebText, fetch_text
from equilibria.data.fetching.published import PUBLISHED, PublishedText
from equilibria.data.sources.folder import FolderText
from equilibria.data.tokenizer_training import TokenizerSpec
from equilibria.errors import UserError
from equilibria.files.manifest import MANIFEST
from hostile import tarred, zipped
from loopback import Fault, Loopback, Served, serving
from watching import Watcher

QUICK = Patience(attempts=2, first_wait=0.001, timeout=5)
TEXTS = {"train": b"the cat sat\n\non the mat\n" * 50, "valid": b"the dog\n", "test": "caf\u00e9\n".encode()}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as server:
        yield server


INSIDE = {f"wikitext/wiki.{split}.tokens": text for split, text in TEXTS.items()} | {
    "wikitext/": b"",
    "__MACOSX/wikitext/._wiki.train.tokens": b"not text",
    "README": b"about it",
}


def published(*files: RemoteFile, cut: tuple[int, int, int] | None = None) -> WebText:
    text = PublishedText("some-text", files, TokenizerSpec("word"), cut)
    return WebText(text, patience=QUICK)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def whole(folder: Path) -> bool:
    return {f"{split}.txt": text for split, text in TEXTS.items()}.items() <= content(folder).items()


@pytest.mark.parametrize(
    "archive",
    [
        zipped(INSIDE),
        tarred(INSIDE),
        tarred(INSIDE, "w:xz"),
        tarred({f"../../{name}": text for name, text in INSIDE.items()}),
    ],
    ids=["zip", "tar.gz", "tar.xz", "climbing"],
)
def test_an_archive_becomes_a_folder_that_recipes_read(server: Loopback, tmp_path: Path, archive: bytes) -> None:
    url = server.serve("/a%20text.archive", archive)
    folder = tmp_path / "data" / "some-text"
    fetched = fetch_text(published(RemoteFile((url,))), folder)
    assert fetched.new
    assert whole(folder)
    assert FolderText(folder).splits() == ("train", "valid", "test")
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest.pop("sha256")  # of the rest
    assert manifest == fetched.manifest
    assert manifest["sources"] == [
        {"url": url, "size": len(archive), "sha256": sha256(archive).hexdigest(), "verified": False}
    ]
    assert manifest["files"]["train.txt"]["sha256"] == sha256(TEXTS["train"]).hexdigest()
    assert {path.name for path in folder.parent.glob("[!.]*")} == {"some-text"}
    assert not any(path.is_dir() for path in folder.parent.glob(".*"))
    assert {path.name for path in tmp_path.iterdir()} == {"data"}  # nothing climbed out


def test_plain_and_compressed_files_one_per_split(server: Loopback, tmp_path: Path) -> None:
    urls = [
        server.serve("/ptb.train.txt", TEXTS["train"]),
        server.serve("/ptb.valid.txt.gz", gzip.compress(TEXTS["valid"])),
        server.serve("/test.txt", TEXTS["test"]),
    ]
    fetch_text(published(*(RemoteFile((url,)) for url in urls)), tmp_path / "ptb")
    assert whole(tmp_path / "ptb")


@pytest.mark.parametrize("name", ["enwik8", "text8"])
def test_one_text_is_cut_in_three_to_the_byte(server: Loopback, tmp_path: Path, name: str) -> None:
    text = ("caf\u00e9 " * 30).encode()  # the first cut falls into a character
    whole_text = next(text for text in PUBLISHED if text.name == name)
    url = server.serve("/archive.zip", zipped({name: text}))
    remote = WebText(replace(whole_text, cut=(94, 6, len(text) - 100)), (url,), patience=QUICK)
    fetch_text(remote, tmp_path / name)
    parts = [(tmp_path / name / f"{split}.txt").read_bytes() for split in ("train", "valid", "test")]
    assert parts == [text[:94], text[94:100], text[100:]]
    pieces = FolderText(tmp_path / name).pieces("train", as_bytes=True)
    assert "".join(pieces).encode("utf-8", "surrogateescape") == text[:94]
    for sizes in ((94, 6, len(text) - 99), (94, 6, len(text) - 101), (len(text), 1, 1)):
        with pytest.raises(UserError, match=rf"is not {sum(sizes)} bytes long"):
            fetch_text(replace(remote, text=replace(whole_text, cut=sizes)), tmp_path / "other")
        assert not (tmp_path / "other").exists()


def test_a_second_call_does_not_touch_the_network(server: Loopback, tmp_path: Path) -> None:
    text, folder = published(RemoteFile((server.serve("/text.zip", zipped(INSIDE)),))), tmp_path / "text"
    with pytest.raises(UserError, match=r"does not hold this text yet, and --offline forbids"):
        fetch_text(text, folder, offline=True)
    assert server.requests == []
    fetch_text(text, folder)
    server.requests.clear()
    for offline in (False, True):
        assert not fetch_text(text, folder, offline=offline).new
    assert server.requests == []


def test_a_broken_download_goes_on_in_the_next_call(server: Loopback, tmp_path: Path) -> None:
    archive = tarred(INSIDE | {"train-more": bytes(400_000)}, "w:")
    url = server.serve("/text.tar", archive, Fault(after=300_000), Fault(status=500), Fault(status=500))
    text, folder = published(RemoteFile((url,))), tmp_path / "text"
    with pytest.raises(UserError, match=r"500 .* 300,000 bytes are kept"):
        fetch_text(text, folder)
    assert not folder.exists()
    fetch_text(text, folder)
    assert whole(folder)
    assert server.requests[-1][2] == "bytes=300000-"


def damaged_archives() -> Iterator[tuple[str, bytes, str]]:
    archive = bytearray(zipped(INSIDE))
    yield "cut short", bytes(archive[:-30]), "damaged archive"
    archive[60] ^= 255
    yield "flipped byte", bytes(archive), "damaged archive"
    yield "half a tar", tarred(INSIDE)[:-40], "damaged archive"
    yield "damaged gzip", gzip.compress(TEXTS["train"])[:-9], "damaged archive"
    yield "no texts", zipped({"README": b"about it"}), "no train and no valid text, such as train.txt"
    yield "no valid", zipped({"train.txt": b"text"}), "no valid text"
    yield "two of one", zipped({"a/train.txt": b"a", "b/train.txt": b"b"}), "second train text"


CASES = {name: case for name, *case in damaged_archives()}


@pytest.mark.parametrize(("archive", "message"), CASES.values(), ids=CASES)
def test_a_damaged_archive_leaves_what_was_there(
    server: Loopback, tmp_path: Path, archive: bytes, message: str
) -> None:
    text, folder = published(RemoteFile((server.serve("/train.txt.gz", zipped(INSIDE)),))), tmp_path / "text"
    fetch_text(text, folder)
    before = content(folder)
    server.serve("/train.txt.gz", archive)
    other = published(RemoteFile((server.address + "/train.txt.gz",), f"sha256:{sha256(archive).hexdigest()}"))
    with pytest.raises(UserError, match=message):
        fetch_text(other, folder, again=True)
    assert content(folder) == before
    with pytest.raises(UserError, match=message):
        fetch_text(other, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    server.serve("/train.txt.gz", zipped(INSIDE))  # mended, and nothing of the damaged one is used again
    fetch_text(text, tmp_path / "new")
    assert whole(tmp_path / "new")


def test_what_has_no_digest_must_stay_what_it_was_first(server: Loopback, tmp_path: Path) -> None:
    text, folder = published(RemoteFile((server.serve("/text.zip", zipped(INSIDE)),))), tmp_path / "text"
    fetch_text(text, folder)
    before = content(folder)
    server.serve("/text.zip", zipped({"train.txt": b"another", "valid.txt": b"text"}))
    expected = sha256(zipped(INSIDE)).hexdigest()
    with pytest.raises(UserError, match=rf"has the digest .*expected sha256:{expected}; .*not kept"):
        fetch_text(text, folder, again=True)
    assert content(folder) == before
    server.serve("/text.zip", zipped(INSIDE))
    assert fetch_text(text, folder, again=True).new
    assert whole(folder)


def test_a_wrong_digest_is_an_error(server: Loopback, tmp_path: Path) -> None:
    url = server.serve("/wikitext-2-v1.zip", zipped(INSIDE))
    wikitext = next(text for text in PUBLISHED if text.name == "wikitext-2")
    text = WebText(wikitext, (url,), (wikitext.files[0].digest or "",), QUICK)
    with pytest.raises(UserError, match=r"has the digest sha256:.*expected sha256:92675f1d"):
        fetch_text(text, tmp_path / "text")
    assert not (tmp_path / "text").exists()


def test_a_folder_with_another_digest_is_not_what_is_asked_for(server: Loopback, tmp_path: Path) -> None:
    url, folder = server.serve("/text.zip", zipped(INSIDE)), tmp_path / "text"
    wikitext = next(text for text in PUBLISHED if text.name == "wikitext-2")
    fetch_text(WebText(wikitext, (url,), (), QUICK), folder)
    digest = f"sha256:{sha256(zipped(INSIDE)).hexdigest()}"
    assert not fetch_text(WebText(wikitext, (url,), (digest,), QUICK), folder).new
    before = content(folder)
    with pytest.raises(UserError, match=rf"which had the digest {digest}, expected sha256:0000"):
        fetch_text(WebText(wikitext, (url,), ("sha256:" + "0" * 64,), QUICK), folder)
    assert content(folder) == before


def test_a_folder_that_is_another_is_left_alone(server: Loopback, tmp_path: Path) -> None:
    text, folder = published(RemoteFile((server.serve("/text.zip", zipped(INSIDE)),))), tmp_path / "text"
    folder.mkdir()
    (folder / "train.txt").write_text("my own")
    for again in (False, True):
        with pytest.raises(UserError, match="was not made by this command"):
            fetch_text(text, folder, again=again)
    assert content(folder) == {"train.txt": b"my own"}
    assert server.requests == []
    fetch_text(text, tmp_path / "other")
    with pytest.raises(UserError, match=r"was fetched from elsewhere .*text\.zip"):
        fetch_text(published(RemoteFile((server.address + "/another.zip",))), tmp_path / "other")


def test_a_changed_text_is_noticed_and_fetched_again_on_request(server: Loopback, tmp_path: Path) -> None:
    text, folder = published(RemoteFile((server.serve("/text.zip", zipped(INSIDE)),))), tmp_path / "text"
    fetch_text(text, folder)
    with (folder / "train.txt").open("ab") as file:
        file.write(b"my own")
    with pytest.raises(UserError, match=r"train\.txt has \d+ bytes and was saved with \d+; .* --again"):
        fetch_text(text, folder)
    (folder / "valid.txt").unlink()
    assert fetch_text(text, folder, again=True).new
    assert whole(folder)


def test_a_changed_text_is_not_prepared_unless_its_manifest_is_removed(server: Loopback, tmp_path: Path) -> None:
    text, folder = published(RemoteFile((server.serve("/text.zip", zipped(INSIDE)),))), tmp_path / "text"
    fetch_text(text, folder)
    source = FolderText(folder)
    before = source.fingerprint()
    content = bytearray((folder / "valid.txt").read_bytes())
    content[3] ^= 1
    (folder / "valid.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"valid\.txt is not what was saved.*remove .*manifest\.json to take"):
        source.fingerprint()
    (folder / MANIFEST).unlink()
    assert source.fingerprint() != before
    (folder / MANIFEST).write_text('{"name": "of another tool"}')
    assert source.fingerprint() != before


def test_what_a_killed_process_left_is_no_folder(server: Loopback, tmp_path: Path) -> None:
    """The texts were unpacked, and perhaps not to their end, when it was killed."""
    text, folder = published(RemoteFile((server.serve("/text.zip", zipped(INSIDE)),))), tmp_path / "text"
    texts = tmp_path / ".text.fetching" / "texts"
    texts.mkdir(parents=True)
    (texts / "train.txt").write_bytes(b"half a te")
    fetch_text(text, folder)
    assert whole(folder)


def test_addresses_and_digests_belong_together(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="1 digests for 0 URLs"):
        WebText(PUBLISHED[0], (), ("sha256:" + "0" * 64,))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        fetch_text(published(RemoteFile(("http://127.0.0.1:9/x",))), tmp_path / "file" / "text")


def test_published_texts_have_digests_and_progress_is_told(server: Loopback, tmp_path: Path) -> None:
    assert [text.name for text in PUBLISHED] == ["wikitext-103", "wikitext-2", "ptb", "enwik8", "text8"]
    assert all(file.digest for text in PUBLISHED for file in text.files)
    watcher, archive = Watcher(), zipped(INSIDE)
    url = server.serve("/text.zip", archive)
    server.files["/text.zip"] = Served(archive, modified="Sat, 21 Nov 2026 06:00:00 GMT")
    fetch_text(published(RemoteFile((url,))), tmp_path / "text", progress=watcher)
    assert [(total, sum(done)) for _, total, done in watcher.bars] == [(len(archive), len(archive))]
    assert watcher.said == ["unpacking text.zip"]


def outside(folder: Path) -> dict[Path, bytes]:
    """All files that are not below `data`."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_relative_to(folder / "data"))
    return {path: path.read_bytes() for path in files}


@pytest.mark.parametrize(
    "name",
    [
        "a%2f..%2f..%2f..%2fhome%2fkeys",
        "%2e%2e%2f%2e%2e%2fhome%2fkeys",
        "x%2f..%2f..%2f..%2f..%2fhome%2fkeys",
        "a/../../../home/keys",
        "..%5c..%5chome%5ckeys",
        "%2fhome%2fkeys",
        "keys%00.txt",
        "CON",
        "%2e%2e",
        "texts%2ftrain.txt",
        "",
        "x" * 300,
        "%ff%fe",
        "%1b[31m%0a",
    ],
)
@pytest.mark.parametrize("good", [True, False])
def test_an_address_names_no_file_here(server: Loopback, tmp_path: Path, name: str, good: bool) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "keys").write_bytes(b"secret")
    before = outside(tmp_path)
    archive = zipped(INSIDE) if good else b"PK\x03\x04 damaged"
    text = published(RemoteFile((server.serve(f"/{name}", archive),)))
    with nullcontext() if good else pytest.raises(UserError, match="is a damaged archive"):
        fetch_text(text, tmp_path / "data" / "text")
        assert whole(tmp_path / "data" / "text")
    assert outside(tmp_path) == before


@pytest.mark.parametrize(
    "address", ["http://[", "http://h:x/", "http://h:99999/", "http://h/\u00e9", "http://h/a b", "ftp://h/", "http://"]
)
def test_what_is_no_url_is_an_error(address: str) -> None:
    with pytest.raises(UserError, match="is not an HTTP"):
        RemoteFile((address,))


def test_a_planted_link_is_not_followed(server: Loopback, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"secret")
    work = tmp_path / ".text.fetching"
    work.mkdir()
    (work / "0.part").symlink_to(victim)
    text = published(RemoteFile((server.serve("/text.zip", zipped(INSIDE)),)))
    fetch_text(text, tmp_path / "text")
    assert whole(tmp_path / "text")
    assert victim.read_bytes() == b"secret"


def test_what_was_not_fetched_is_not_removed(server: Loopback, tmp_path: Path) -> None:
    text, folder = published(RemoteFile((server.serve("/text.zip", zipped(INSIDE)),))), tmp_path / "text"
    fetch_text(text, folder)
    (folder / "notes").mkdir()
    (folder / "notes" / "mine.txt").write_text("my own")
    with pytest.raises(UserError, match=r"notes was not fetched and would be lost; move it"):
        fetch_text(text, folder, again=True)
    assert (folder / "notes" / "mine.txt").read_text() == "my own"
    shutil.rmtree(folder / "notes")
    assert fetch_text(text, folder, again=True).new


def test_the_earlier_text_comes_back_when_its_replacement_was_killed(server: Loopback, tmp_path: Path) -> None:
    text, folder = published(RemoteFile((server.serve("/text.zip", zipped(INSIDE)),))), tmp_path / "text"
    fetch_text(text, folder)
    folder.rename(tmp_path / ".text.replaced")
    assert not fetch_text(text, folder, offline=True).new
    assert whole(folder)


@contextmanager
def small_files(largest: int) -> Iterator[None]:
    """A disk that has no room for a larger file, so far as a process can tell."""
    earlier, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, earlier[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, earlier)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("largest", [300, 5_000, 60_000], ids=["notes", "archive", "text"])
def test_a_full_disk_is_not_kept_full(server: Loopback, tmp_path: Path, largest: int) -> None:
    inside = INSIDE | {
        "wikitext/wiki.train.tokens": b"the cat sat\n" * 20_000,
        "random": random.Random(0).randbytes(9_000),
    }
    text = published(RemoteFile((server.serve("/text.zip", zipped(inside)), server.address + "/mirror.zip")))
    with small_files(largest), pytest.raises(UserError, match=r"cannot be written \(File too large\)"):
        fetch_text(text, tmp_path / "text")
    assert {path.name for path in tmp_path.iterdir()} <= {".text.lock"}
    assert [path for _, path, _ in server.requests] == ["/text.zip"]  # no mirror has room for it either
    fetch_text(text, tmp_path / "text")


def test_what_a_damaged_archive_unpacked_to_goes(server: Loopback, tmp_path: Path) -> None:
    text = published(RemoteFile((server.serve("/text.zip", zipped({"train.txt": b"text\n" * 99})),)))
    with pytest.raises(UserError, match="no valid text"):
        fetch_text(text, tmp_path / "text")
    assert not [path for path in (tmp_path / ".text.fetching").rglob("*") if path.name.endswith(".txt")]
