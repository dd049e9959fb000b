"""A text from the Hugging Face hub, found and read by `datasets`, downloaded and cached by `huggingface_hub`."""

import errno
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from equilibria.data.fetching.download import (
    PATIENCE,
    Fetched,
    Patience,
    Result,
    TransientError,
    UnwritableError,
    file_hash,
)
from equilibria.data.progress import Progress
from equilibria.data.sources.base import Split, assigned
from equilibria.errors import UserError

_SPLITS: dict[str, Split] = {
    "train": "train",
    "validation": "valid",
    "valid": "valid",
    "val": "valid",
    "dev": "valid",
    "test": "test",
}
_ADDRESS = re.compile(r"hf://datasets/([^@]+)@([^/]+)/(.+)")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ROWS = 1000
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True)
class HubText:
    """One column of a data set on the hub; each row is a line, or as many lines as it has.

    Without a validation split, rows are held out for it by a stable hash of each, so that no row is in both.

    Args:
        name: of the data set, as OWNER/NAME.
        config: which of its configurations; None if it has one.
        revision: branch, tag or commit; None is the current main branch.
        column: the column with the text.
        held_out: share of the rows held out if there is no validation split.
    """

    name: str
    config: str | None = None
    revision: str | None = None
    column: str = "text"
    held_out: float = 0.01
    patience: Patience = PATIENCE

    def request(self) -> dict[str, Any]:
        place = {"hub": self.name, "config": self.config, "revision": self.revision}
        return {**place, "column": self.column, "held_out": self.held_out}

    def known_digests(self) -> dict[str, str]:
        return {}

    def fetch(self, work: Path, texts: Path, trusted: dict[str, str], progress: Progress) -> list[Fetched]:
        try:
            import datasets
        except ImportError as problem:
            raise UserError(f"the hub needs another package ({problem}): pip install 'equilibria[data]'") from problem
        progress.say(f"asking the hub for {self.name}")
        options = {"revision": self.revision, "cache_dir": str(work / "arrow")}
        load = partial(datasets.load_dataset_builder, self.name, self.config, **options)
        builder = self._patiently(load, progress)
        files = builder.config.data_files or {}
        addresses = [address for split in files.values() for address in split if _ADDRESS.fullmatch(address)]
        fetched = [self._file(address, trusted.get(address), progress) for address in addresses]
        progress.say(f"reading {self.name}")
        self._patiently(builder.download_and_prepare, progress)
        self._write(builder.as_dataset(), texts, progress)
        return fetched

    def _file(self, address: str, trusted: str | None, progress: Progress) -> Fetched:
        """Downloads one file into the hub's cache and checks it."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.constants import HF_HUB_CACHE

        place = _ADDRESS.fullmatch(address)
        assert place is not None, address
        name, revision, file = place.groups()
        progress.say(f"fetching {address}")
        get = partial(hf_hub_download, name, file, repo_type="dataset", revision=revision)
        path = Path(self._patiently(get, progress))
        content = path.resolve()
        if not content.is_relative_to(Path(HF_HUB_CACHE).resolve()):
            raise UserError(f"{address} would lie outside the hub's cache, at {content}; do not trust this hub")
        found = file_hash(content, "sha256").removeprefix("sha256:")
        # The cache names a large file by the hub's SHA-256; small ones have none.
        published = content.name if _SHA256.fullmatch(content.name) else None
        if (published or trusted) not in (None, found):
            content.unlink()
            path.unlink(missing_ok=True)
            raise UserError(f"{address} has the SHA-256 {found}, expected {published or trusted}; it was not kept")
        return Fetched(address, content.stat().st_size, found, published is not None)

    def _write(self, rows: Any, texts: Path, progress: Progress) -> None:
        columns = sorted({name for split in rows.values() for name in split.column_names})
        if self.column not in columns:
            raise UserError(f"{self.name} has no column {self.column!r}; name one with --column: {', '.join(columns)}")
        known = {name: split for name, split in _SPLITS.items() if name in rows}
        if "train" not in known:
            raise UserError(f"{self.name} has no training split; it has {', '.join(rows)}")
        holds_out = "valid" not in known.values()
        with ExitStack() as stack:
            files = {
                split: stack.enter_context((texts / f"{split}.txt").open("w", encoding="utf-8", newline=""))
                for split in {*known.values(), "valid"}
            }
            for name, split in known.items():
                with progress.bar(f"writing the {split} text of {self.name}", rows[name].data.nbytes) as advance:
                    for row in self._rows(rows[name]):
                        held_out = holds_out and split == "train"
                        files[assigned(row, self.held_out, 0.0) if held_out else split].write(row)
                        advance(len(row))

    def _rows(self, split: Any) -> Iterator[str]:
        for batch in split.select_columns([self.column]).iter(_ROWS):
            for row in batch[self.column]:
                if row is not None and not isinstance(row, str):
                    raise UserError(f"the column {self.column!r} of {self.name} holds no text; name one with --column")
                yield row if row and row.endswith("\n") else f"{row or ''}\n"

    def _patiently(self, work: Callable[[], Result], progress: Progress) -> Result:
        """Calls the hub, again after transient errors."""

        def attempt() -> Result:
            try:
                return work()
            except UserError:
                raise
            except Exception as problem:  # of several libraries, which share no base class
                reason = " ".join(str(problem).split()) or type(problem).__name__
                if any(isinstance(cause, OSError) and cause.errno in _FULL for cause in _causes(problem)):
                    raise UnwritableError(f"{self.name} cannot be kept ({problem}); free some space") from problem
                if _is_transient(problem):
                    raise TransientError(reason) from problem
                raise UserError(f"{self.name}: {reason}") from problem

        return self.patience.retry(attempt, self.name, progress)


def _causes(problem: BaseException | None) -> Iterator[BaseException]:
    """An exception and those that led to it, however the libraries have wrapped them."""
    while problem is not None:
        yield problem
        problem = problem.__cause__ or problem.__context__


def _is_transient(problem: BaseException) -> bool:
    """Whether the network or a server failed for now."""
    for cause in _causes(problem):
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status is not None:
            return status >= 500 or status in (408, 429)
        if isinstance(cause, ConnectionError | TimeoutError) or type(cause).__module__.startswith("http"):
            return True
    return False
