"""A fetched text as a folder that recipes read, with a manifest of its files and their sources.

A folder is built beside its place and renamed when it is complete; it never changes afterwards. What a broken attempt
has fetched stays beside it, hidden, and the next attempt resumes from it.
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
            work: a folder that is kept when this fails, for the next attempt.
            texts: an empty folder for the texts.
            trusted: SHA-256 by URL, from when this text was fetched before.
            progress: told of each step.

        Raises:
            UserError: the text cannot be fetched, or differs from what is known of it.
        """
        ...


@dataclass(frozen=True)
class FetchedText:
    """A folder of fetched text.

    Attributes:
        folder: its path.
        manifest: the content of its manifest.json: `request`, `sources` and `files`.
        new: whether it was fetched just now.
    """

    folder: Path
    manifest: dict[str, Any]
    new: bool


def fetch_text(
    text: RemoteText, folder: Path, *, offline: bool = False, again: bool = False, progress: Progress = UNWATCHED
) -> FetchedText:
    """Fetches a text into a folder; uses no network if it is there already.

    Args:
        text: what to fetch.
        folder: where it goes. What is there already is replaced only with `again`, once the new text is complete.
        offline: do not use the network.
        again: fetch it even if it is there; files without a published digest must then be as before.
        progress: told of each step.

    Raises:
        UserError: the folder holds something else or was changed, the text cannot be fetched or differs from what is
            known of it, or the disk cannot be written.
    """
    with _writable(folder), FileLock(folder.with_name(f".{folder.name}.lock")):
        if _aside(folder).exists() and not folder.exists():
            _aside(folder).rename(folder)  # a process was killed before the new folder took its place
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
            raise UserError(f"{folder} does not hold this text yet, and --offline forbids fetching it")
        return FetchedText(folder, _fetch(text, folder, manifest, progress), new=True)


def _fetch(text: RemoteText, folder: Path, earlier: dict[str, Any], progress: Progress) -> dict[str, Any]:
    work = folder.with_name(f".{folder.name}.fetching")
    texts = work / "texts"
    shutil.rmtree(texts, ignore_errors=True)
    trusted = {source["url"]: source["sha256"] for source in earlier.get("sources", ())}
    with _tidied(work, texts):
        texts.mkdir(parents=True)
        sources = text.fetch(work, texts, trusted, progress)
        record = {"format": _FORMAT, "request": text.request(), "sources": [asdict(source) for source in sources]}
        manifest = write_manifest(texts, more=record)
    _replace(folder, texts, _aside(folder))
    shutil.rmtree(work, ignore_errors=True)
    return manifest


@contextmanager
def _tidied(work: Path, texts: Path) -> Iterator[None]:
    """After a broken attempt, keeps what was fetched for the next one; on a full disk, keeps nothing."""
    try:
        yield
    except (OSError, UnwritableError):
        shutil.rmtree(work, ignore_errors=True)
        raise
    except BaseException:
        shutil.rmtree(texts, ignore_errors=True)
        raise


def _aside(folder: Path) -> Path:
    """The name of a folder while another takes its place."""
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
            raise UserError(
                f"{folder} was fetched from {source['url']}, which had the digest sha256:{source['sha256']}, expected "
                f"{expected}; give another --out, or --again"
            )
    if manifest["request"] != text.request():
        raise UserError(
            f"{folder} was fetched from elsewhere ({json.dumps(manifest['request'])}); give another --out, or --again"
        )


def _check_owned(folder: Path, manifest: dict[str, Any]) -> None:
    """Checks that a folder that will be replaced holds only what was fetched."""
    for path in sorted(folder.iterdir()) if folder.exists() else ():
        if path.name != MANIFEST and path.name not in manifest["files"]:
            raise UserError(f"{path} was not fetched and would be lost; move it elsewhere")


def _not_ours(folder: Path) -> UserError:
    return UserError(
        f"{folder} exists already and was not made by this command, or its {MANIFEST} is damaged; give another "
        f"--out, or remove it"
    )


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest; empty if it cannot be read."""
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
    """A published text, from its publisher or from other URLs.

    Args:
        text: which one.
        urls: to fetch it from instead: that of an archive, or one per file. Without a digest, what comes is trusted the
            first time and must be the same afterwards.
        digests: of the files at `urls`, in their order, if they are known.
        patience: retry policy.

    Raises:
        UserError: the numbers of digests and URLs differ.
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
            urls = ", ".join(url for file in self._files() for url in file.urls[:1])
            with _removed_by_errors(paths):
                raise UserError(f"{urls}: no {' and no '.join(missing)} text, such as {missing[0]}.txt, was found")
        return fetched

    def _files(self) -> Sequence[RemoteFile]:
        if not self.urls:
            return self.text.files
        digests = self.digests or (None,) * len(self.urls)
        return [RemoteFile((url,), digest) for url, digest in zip(self.urls, digests, strict=True)]


@contextmanager
def _removed_by_errors(paths: list[Path]) -> Iterator[None]:
    """Removes files that are of no use, so that the next attempt fetches them again."""
    try:
        yield
    except UserError:
        for path in paths:
            path.unlink(missing_ok=True)
        raise


@dataclass(frozen=True)
class _Splits:
    """Keeps the files that are named after a split."""

    folder: Path

    def __call__(self, name: str, stream: IO[bytes]) -> None:
        split = split_of(name)
        if split is None:
            return
        if any(self.folder.glob(f"{split}.*")):
            raise UserError(f"{name} would be a second {split} text; give a URL that has one")
        with (self.folder / f"{split}.txt").open("wb") as file:
            shutil.copyfileobj(stream, file, _BLOCK)


@dataclass(frozen=True)
class _Cut:
    """Cuts one file into splits of given sizes."""

    folder: Path
    sizes: tuple[int, int, int]

    def __call__(self, name: str, stream: IO[bytes]) -> None:
        if (self.folder / "train.txt").exists():
            raise UserError(f"{name} is a second file; give a URL that has one")
        missing = 0
        for split, size in zip(SPLITS, self.sizes, strict=True):
            with (self.folder / f"{split}.txt").open("wb") as file:
                while size and (block := stream.read(min(size, _BLOCK))):
                    size -= file.write(block)
            missing += size
        if missing or stream.read(1):
            raise UserError(f"{name} is not {sum(self.sizes):,} bytes long; it is another text")
