"""A folder of text from elsewhere, in the layout that recipes read, with a manifest of what it holds and whence.

A folder appears when it is complete and never changes afterwards: it is made beside its place and renamed. What a
broken attempt has fetched so far stays beside it too, hidden, and the next attempt goes on with it.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from equilibria.data.fetching.archives import base_name, unpack
from equilibria.data.fetching.download import PATIENCE, Fetched, Patience, RemoteFile, UnwritableError, download
from equilibria.data.fetching.published import PublishedText
from equilibria.data.progress import UNWATCHED, Progress
from equilibria.data.sources.base import SPLITS
from equilibria.data.sources.folder import split_of
from equilibria.errors import UserError
from equilibria.files.durable import flush_folder, rename_durably
from equilibria.files.formats import is_file_name
from equilibria.files.manifest import MANIFEST, check_manifest, read_manifest, write_manifest

_FORMAT = 1
_BLOCK = 1 << 20


class RemoteText(Protocol):
    """A text that is elsewhere."""

    def request(self) -> dict[str, Any]:
        """What is asked for, in JSON's types: two texts are the same if it is."""
        ...

    def known_digests(self) -> dict[str, str]:
        """What must be at some addresses, as `"algorithm:hex"`."""
        ...

    def fetch(self, work: Path, texts: Path, trusted: dict[str, str], progress: Progress) -> list[Fetched]:
        """Writes `train.txt`, `valid.txt` and perhaps `test.txt`.

        Args:
            work: a folder whose content stays when this fails, for the next attempt.
            texts: an empty folder for the texts.
            trusted: SHA-256 of what was at an address when this text was fetched before.
            progress: told of what is going on.

        Returns:
            What was fetched.

        Raises:
            UserError: it cannot be had, or is not what it must be.
        """
        ...


@dataclass(frozen=True)
class FetchedText:
    """A folder of text that is here.

    Attributes:
        folder: where.
        manifest: what its manifest.json says: `request`, `sources` and `files`.
        new: whether it was fetched just now.
    """

    folder: Path
    manifest: dict[str, Any]
    new: bool


def fetch_text(
    text: RemoteText, folder: Path, *, offline: bool = False, again: bool = False, progress: Progress = UNWATCHED
) -> FetchedText:
    """Fetches a text into a folder, or finds it there whole, without the network.

    Args:
        text: which one, and how it is fetched.
        folder: where it goes. What is there already is left alone unless `again` is set and the new one is whole.
        offline: do not use the network.
        again: fetch it even if it is there; files whose digest is not published must then be what they were.
        progress: told of what is going on.

    Raises:
        UserError: the folder holds something else or was changed, the text cannot be had or is not what it must be, or
            the disk cannot be written.
    """
    with _writable(folder), FileLock(folder.with_name(f".{folder.name}.lock")):
        if _aside(folder).exists() and not folder.exists():
            _aside(folder).rename(folder)  # a process was killed before the new one was in its place
        shutil.rmtree(_aside(folder), ignore_errors=True)
        manifest = _read_manifest(folder)
        if not again and folder.exists():
            _check(folder, manifest, text)
            return FetchedText(folder, manifest, new=False)
        if again and folder.exists() and not manifest:
            raise _not_ours(folder)
        if again:
            _check_owned(folder, manifest)
        if offline:
            raise UserError(f"{folder} does not hold this text yet, and --offline forbids to fetch it")
        return FetchedText(folder, _fetch(text, folder, manifest, progress), new=True)


def _fetch(text: RemoteText, folder: Path, earlier: dict[str, Any], progress: Progress) -> dict[str, Any]:
    work = folder.with_name(f".{folder.name}.fetching")
    texts = work / "texts"
    shutil.rmtree(texts, ignore_errors=True)
    trusted = {source["url"]: source["sha256"] for source in earlier.get("sources", ())}
    with _tidied(work, texts):
        texts.mkdir(parents=True)
        sources = text.fetch(work, texts, trusted, progress)
        told = {"format": _FORMAT, "request": text.request(), "sources": [asdict(source) for source in sources]}
        manifest = write_manifest(texts, more=told)
    _replace(folder, texts, _aside(folder))
    shutil.rmtree(work, ignore_errors=True)
    return manifest


@contextmanager
def _tidied(work: Path, texts: Path) -> Iterator[None]:
    """Leaves of a broken attempt what was fetched, for the next; and of one that the disk has no room for, nothing."""
    try:
        yield
    except (OSError, UnwritableError):
        shutil.rmtree(work, ignore_errors=True)
        raise
    except BaseException:
        shutil.rmtree(texts, ignore_errors=True)
        raise


def _aside(folder: Path) -> Path:
    """Where a folder is for the moment in which another takes its place."""
    return folder.with_name(f".{folder.name}.replaced")


def _replace(folder: Path, new: Path, aside: Path) -> None:
    flush_folder(new)
    if folder.exists():
        rename_durably(folder, aside)
    try:
        rename_durably(new, folder)
    except OSError:
        if aside.exists():
            rename_durably(aside, folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _check(folder: Path, manifest: dict[str, Any], text: RemoteText) -> None:
    """Checks that a folder holds the text that is asked for, unchanged."""
    if not manifest:
        raise _not_ours(folder)
    try:
        check_manifest(folder)
    except UserError as problem:
        raise UserError(f"{problem}; keep what you need of {folder} elsewhere, then fetch it with --again") from problem
    for source in manifest["sources"]:
        expected = text.known_digests().get(source["url"], "")
        if expected.startswith("sha256:") and expected != f"sha256:{source['sha256']}":
            raise UserError(
                f"{folder} was fetched from {source['url']}, which had the digest sha256:{source['sha256']}, expected "
                f"{expected}; give another --out, or --again"
            )
    if manifest["request"] != text.request():
        raise UserError(
            f"{folder} was fetched from elsewhere ({json.dumps(manifest['request'])}); give another --out, or --again"
        )


def _check_owned(folder: Path, manifest: dict[str, Any]) -> None:
    """Checks that a folder, which is going to be replaced, holds nothing that was not fetched."""
    for path in sorted(folder.iterdir()) if folder.exists() else ():
        if path.name != MANIFEST and path.name not in manifest["files"]:
            raise UserError(f"{path} is none of the files that were fetched and would be lost; move it elsewhere")


def _not_ours(folder: Path) -> UserError:
    return UserError(
        f"{folder} exists already and was not made by this command, or its {MANIFEST} is damaged; give another --out, "
        f"or remove it"
    )


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest; empty where there is none that can be read."""
    try:
        manifest = read_manifest(folder)
    except UserError:
        return {}
    match manifest:
        case {"format": int(number), "request": dict(), "sources": [*sources], "files": dict(files)}:
            whole = number == _FORMAT and all(map(is_file_name, files)) and all(map(_is_source, sources))
            return manifest if whole else {}
    return {}


def _is_source(entry: object) -> bool:
    match entry:
        case {"url": str(), "size": int(), "sha256": str(), "verified": bool()}:
            return True
    return False


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as problem:
        raise UserError(f"{folder} cannot be written ({problem.strerror or problem}); give another --out") from problem


@dataclass(frozen=True)
class WebText:
    """A published text, from where it is published or from elsewhere.

    Args:
        text: which one.
        urls: addresses to fetch it from instead: one of an archive, or one per file. Nothing is known of what is
            there, so it is taken on trust the first time, and must be the same ever after.
        digests: of what is at these addresses, in their order, where they are known.
        patience: with the servers.

    Raises:
        UserError: digests without addresses, or of another number.
    """

    text: PublishedText
    urls: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    patience: Patience = PATIENCE

    def __post_init__(self) -> None:
        if self.digests and len(self.digests) != len(self.urls):
            raise UserError(f"{len(self.digests)} digests do not belong to {len(self.urls)} addresses; give one each")

    def request(self) -> dict[str, Any]:
        return {"text": self.text.name, "urls": [url for file in self._files() for url in file.urls]}

    def known_digests(self) -> dict[str, str]:
        return {url: file.digest for file in self._files() if file.digest is not None for url in file.urls}

    def fetch(self, work: Path, texts: Path, trusted: dict[str, str], progress: Progress) -> list[Fetched]:
        fetched, paths = [], []
        for number, remote in enumerate(self._files()):
            name = base_name(unquote(urlsplit(remote.urls[0]).path)) or "the file"
            paths.append(work / str(number))
            first = trusted.get(remote.urls[0])
            if remote.digest is None and first is not None:
                remote = replace(remote, digest=f"sha256:{first}")
            fetched.append(download(remote, paths[-1], self.patience, progress))
            progress.say(f"unpacking {name}")
            with _removed_by_errors(paths):
                unpack(paths[-1], name, _Cut(texts, self.text.cut) if self.text.cut else _Splits(texts))
        missing = [split for split in ("train", "valid") if not any(texts.glob(f"{split}.*"))]
        if missing:
            addresses = ", ".join(url for file in self._files() for url in file.urls[:1])
            with _removed_by_errors(paths):
                raise UserError(f"{addresses}: no {' and no '.join(missing)} text, such as {missing[0]}.txt, is there")
        return fetched

    def _files(self) -> Sequence[RemoteFile]:
        if not self.urls:
            return self.text.files
        digests = self.digests or (None,) * len(self.urls)
        return [RemoteFile((url,), digest) for url, digest in zip(self.urls, digests, strict=True)]


@contextmanager
def _removed_by_errors(paths: list[Path]) -> Iterator[None]:
    """Files that are no use are not taken for the right ones by the next attempt."""
    try:
        yield
    except UserError:
        for path in paths:
            path.unlink(missing_ok=True)
        raise


@dataclass(frozen=True)
class _Splits:
    """Takes the files that are named after a split."""

    folder: Path

    def __call__(self, name: str, stream: IO[bytes]) -> None:
        split = split_of(name)
        if split is None:
            return
        if any(self.folder.glob(f"{split}.*")):
            raise UserError(f"{name} would be a second {split} text; give an address that has one")
        with (self.folder / f"{split}.txt").open("wb") as file:
            shutil.copyfileobj(stream, file, _BLOCK)


@dataclass(frozen=True)
class _Cut:
    """Takes one file and cuts it into splits of given sizes."""

    folder: Path
    sizes: tuple[int, int, int]

    def __call__(self, name: str, stream: IO[bytes]) -> None:
        if (self.folder / "train.txt").exists():
            raise UserError(f"{name} is a second file; give an address that has one")
        missing = 0
        for split, size in zip(SPLITS, self.sizes, strict=True):
            with (self.folder / f"{split}.txt").open("wb") as file:
                while size and (block := stream.read(min(size, _BLOCK))):
                    size -= file.write(block)
            missing += size
        if missing or stream.read(1):
            raise UserError(f"{name} is not {sum(self.sizes):,} bytes long; it is another text")
