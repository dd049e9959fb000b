"""A fetched text as a folder that recipes read, with a manifest of its files and their sources.

A folder is renamed into place when it is complete, and never changes afterwards. What a broken attempt has fetched
stays beside it, hidden, for the next attempt to resume.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
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
from equilibria.files.durable import flush_folder, rename_durably, reported
from equilibria.files.formats import is_file_name
from equilibria.files.manifest import MANIFEST, check_manifest, read_manifest, write_manifest

_FORMAT = 1
_BLOCK = 1 << 20


class RemoteText(Protocol):
    """A text to be fetched."""

    def request(self) -> dict[str, Any]:
        """What identifies the text, in JSON's types."""
        ...

    def known_digests(self) -> dict[str, str]:
        """The known digests by URL, as `"algorithm:hex"`."""
        ...

    def fetch(self, work: Path, texts: Path, trusted: dict[str, str], progress: Progress) -> list[Fetched]:
        """Writes `train.txt`, `valid.txt` and perhaps `test.txt`; returns what was fetched.

        Args:
            work: a folder that is kept after a failure, for the next attempt.
            texts: an empty folder for the texts.
            trusted: SHA-256 by URL, from an earlier fetch; a UserError if what is fetched differs.
        """
        ...


@dataclass(frozen=True)
class FetchedText:
    """A folder of fetched text, the content of its manifest.json, and whether it was fetched just now."""

    folder: Path
    manifest: dict[str, Any]
    new: bool


def fetch_text(
    text: RemoteText, folder: Path, *, offline: bool = False, again: bool = False, progress: Progress = UNWATCHED
) -> FetchedText:
    """Fetches a text into a folder, unless it is there already.

    Args:
        offline: do not use the network.
        again: fetch it even if it is there, and replace it once the new text is complete; files without a published
            digest must be as before.

    Raises:
        UserError: the folder holds something else or was changed, the text cannot be fetched or differs from what is
            known of it, or the disk cannot be written.
    """
    aside = folder.with_name(f".{folder.name}.replaced")  # the folder's name while a new one takes its place
    with reported(folder, "give another --out"), _locked(folder):
        if aside.exists() and not folder.exists():
            aside.rename(folder)  # a process was killed before the new folder took its place
        shutil.rmtree(aside, ignore_errors=True)
        manifest = _read_manifest(folder)
        if not again and folder.exists():
            _check(folder, manifest, text)
            return FetchedText(folder, manifest, new=False)
        if folder.exists():
            _check_owned(folder, manifest)
        if offline:
            raise UserError(f"{folder} does not hold this text yet, and --offline forbids fetching it")
        return FetchedText(folder, _fetch(text, folder, aside, manifest, progress), new=True)


def _locked(folder: Path) -> FileLock:
    folder.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(folder.with_name(f".{folder.name}.lock"))


def _fetch(text: RemoteText, folder: Path, aside: Path, earlier: dict[str, Any], progress: Progress) -> dict[str, Any]:
    work = folder.with_name(f".{folder.name}.fetching")
    texts = work / "texts"
    shutil.rmtree(texts, ignore_errors=True)
    trusted = {source["url"]: source["sha256"] for source in earlier.get("sources", ())}
    with _tidied(work, texts):
        texts.mkdir(parents=True)
        sources = text.fetch(work, texts, trusted, progress)
        record = {"format": _FORMAT, "request": text.request(), "sources": [asdict(source) for source in sources]}
        manifest = write_manifest(texts, more=record)
    _replace(folder, texts, aside)
    shutil.rmtree(work, ignore_errors=True)
    return manifest


@contextmanager
def _tidied(work: Path, texts: Path) -> Iterator[None]:
    """Keeps what a broken attempt has fetched for the next one; on a full disk, nothing."""
    try:
        yield
    except (OSError, UnwritableError):
        shutil.rmtree(work, ignore_errors=True)
        raise
    except BaseException:
        shutil.rmtree(texts, ignore_errors=True)
        raise


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
    """Checks that a folder holds the requested text, unchanged."""
    if not manifest:
        raise _not_ours(folder)
    try:
        check_manifest(folder)
    except UserError as problem:
        raise UserError(f"{problem}; keep what you need of {folder} elsewhere, then fetch it with --again") from problem
    for source in manifest["sources"]:
        expected = text.known_digests().get(source["url"], "")
        if expected.startswith("sha256:") and expected != f"sha256:{source['sha256']}":
            found = f"{source['url']}, which had the digest sha256:{source['sha256']}, expected {expected}"
            raise UserError(f"{folder} was fetched from {found}; give another --out, or --again")
    if manifest["request"] != text.request():
        found = json.dumps(manifest["request"])
        raise UserError(f"{folder} was fetched from elsewhere ({found}); give another --out, or --again")


def _check_owned(folder: Path, manifest: dict[str, Any]) -> None:
    """Checks that a folder to be replaced holds only what was fetched."""
    if not manifest:
        raise _not_ours(folder)
    for path in sorted(folder.iterdir()):
        if path.name != MANIFEST and path.name not in manifest["files"]:
            raise UserError(f"{path} was not fetched and would be lost; move it elsewhere")


def _not_ours(folder: Path) -> UserError:
    found = f"was not made by this command, or its {MANIFEST} is damaged"
    return UserError(f"{folder} exists already and {found}; give another --out, or remove it")


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest; empty if it cannot be read."""
    with suppress(UserError):
        manifest = read_manifest(folder)
        match manifest:
            case {"format": int(number), "request": dict(), "sources": [*sources], "files": dict(files)}:
                if number == _FORMAT and all(map(is_file_name, files)) and all(map(_is_source, sources)):
                    return manifest
    return {}


def _is_source(entry: object) -> bool:
    match entry:
        case {"url": str(), "size": int(), "sha256": str(), "verified": bool()}:
            return True
    return False


@dataclass(frozen=True)
class WebText:
    """A published text, from its publisher or from other URLs.

    Args:
        text: which one.
        urls: to fetch it from instead: of an archive, or one per file. A file without a digest is trusted the first
            time and must be the same afterwards.
        digests: of the files at `urls`, if known.
    """

    text: PublishedText
    urls: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    patience: Patience = PATIENCE

    def __post_init__(self) -> None:
        if self.digests and len(self.digests) != len(self.urls):
            raise UserError(f"{len(self.digests)} digests for {len(self.urls)} URLs; give one each")

    def request(self) -> dict[str, Any]:
        return {"text": self.text.name, "urls": [url for file in self._files() for url in file.urls]}

    def known_digests(self) -> dict[str, str]:
        return {url: file.digest for file in self._files() if file.digest is not None for url in file.urls}

    def fetch(self, work: Path, texts: Path, trusted: dict[str, str], progress: Progress) -> list[Fetched]:
        fetched, files = [], {work / str(number): remote for number, remote in enumerate(self._files())}
        for path, remote in files.items():
            first = trusted.get(remote.urls[0])
            if remote.digest is None and first is not None:
                remote = replace(remote, digest=f"sha256:{first}")
            fetched.append(download(remote, path, self.patience, progress))
        take = partial(_cut, texts, self.text.cut) if self.text.cut else partial(_keep_split, texts)
        urls = [remote.urls[0] for remote in files.values()]
        try:
            for path, url in zip(files, urls, strict=True):
                name = base_name(unquote(urlsplit(url).path)) or "the file"
                progress.say(f"unpacking {name}")
                unpack(path, name, take)
            missing = [split for split in ("train", "valid") if not any(texts.glob(f"{split}.*"))]
            if missing:
                found = f"no {' and no '.join(missing)} text, such as {missing[0]}.txt, was found"
                raise UserError(f"{', '.join(urls)}: {found}")
        except UserError:
            for path in files:  # they are useless; the next attempt fetches them again
                path.unlink(missing_ok=True)
            raise
        return fetched

    def _files(self) -> Sequence[RemoteFile]:
        if not self.urls:
            return self.text.files
        digests = self.digests or (None,) * len(self.urls)
        return [RemoteFile((url,), digest) for url, digest in zip(self.urls, digests, strict=True)]


def _keep_split(folder: Path, name: str, stream: IO[bytes]) -> None:
    """Keeps a file that is named after a split."""
    split = split_of(name)
    if split is None:
        return
    if any(folder.glob(f"{split}.*")):
        raise UserError(f"{name} would be a second {split} text; give a URL that has one")
    with (folder / f"{split}.txt").open("wb") as file:
        shutil.copyfileobj(stream, file, _BLOCK)


def _cut(folder: Path, sizes: tuple[int, int, int], name: str, stream: IO[bytes]) -> None:
    """Cuts the one file into splits of given sizes."""
    if (folder / "train.txt").exists():
        raise UserError(f"{name} is a second file; give a URL that has one")
    missing = 0
    for split, size in zip(SPLITS, sizes, strict=True):
        with (folder / f"{split}.txt").open("wb") as file:
            while size and (block := stream.read(min(size, _BLOCK))):
                size -= file.write(block)
        missing += size
    if missing or stream.read(1):
        raise UserError(f"{name} is not {sum(sizes):,} bytes long; it is another text")
