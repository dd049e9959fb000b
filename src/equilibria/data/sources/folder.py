"""A folder with one text file per split, in the layout of the WikiText releases."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from equilibria.data.sources.base import SPLITS, Source, Split
from equilibria.data.sources.reading import file_digest, read_pieces, text_digest, text_size
from equilibria.errors import UserError
from equilibria.files.manifest import MANIFEST, check_manifest, read_manifest

_FOLDER_FILE = re.compile(r"(?:.+\.)?(train|val|valid|validation|test)\.(?:txt|tokens|raw)(?:\.gz)?")
_OTHER_NAMES = {"val": "valid", "validation": "valid"}


def split_of(file_name: str) -> Split | None:
    """The split that a file of such a folder holds; None if its name is not one of a split."""
    match = _FOLDER_FILE.fullmatch(file_name)
    name = match and _OTHER_NAMES.get(match[1], match[1])
    return next((split for split in SPLITS if split == name), None)


@dataclass(frozen=True)
class FolderText(Source):
    """A folder with one text file per split, in the layout of the WikiText releases.

    The files are `train.txt`, `valid.txt` (or `val.txt`, `validation.txt`) and, if there is one, `test.txt`; each may
    carry a prefix (`wiki.train.txt`), end in `.tokens` or `.raw`, and be compressed (`.gz`). Every line is a passage,
    blank ones included, as WikiText's tokens are conventionally counted.

    Args:
        path: the folder.

    Raises:
        UserError: when used, if the folder or a file is missing, ambiguous, unreadable or without text.
    """

    path: Path

    @property
    def name(self) -> str:
        return self.path.resolve().name

    def splits(self) -> tuple[Split, ...]:
        return tuple(self._files("train", "valid"))

    def pieces(self, split: Split, as_bytes: bool = False) -> Iterator[str]:
        path = self._file(split)
        blank = True
        for piece in read_pieces(path, as_bytes):
            blank = blank and not piece.strip()
            yield piece
        if blank:
            raise UserError(f"{path} holds no text; put the {split} text in it, one paragraph per line")

    def size(self, split: Split) -> int:
        return text_size(self._file(split))

    def fingerprint(self) -> str:
        self._check_fetched()
        return text_digest(
            part for split, path in self._files("train", "valid").items() for part in (split, file_digest(path))
        )

    def _check_fetched(self) -> None:
        """Checks a text that `equilibria data` fetched against its manifest."""
        try:
            read_manifest(self.path)
        except UserError:
            return  # another folder
        try:
            check_manifest(self.path)
        except UserError as problem:
            mend = f"fetch it again, or remove {self.path / MANIFEST} to take the text as it is"
            raise UserError(f"{problem}; {mend}") from problem

    def _file(self, split: Split) -> Path:
        files = self._files(split) if split != "test" else self._files()
        if split not in files:
            raise UserError(f"{self.path} has no {split} file; add {split}.txt")
        return files[split]

    def _files(self, *needed: Split) -> dict[Split, Path]:
        """The file of each split; raises a UserError if a needed one is missing."""
        if not self.path.is_dir():
            found = "is a file" if self.path.exists() else "does not exist"
            mend = "give a folder with train.txt and valid.txt, such as `equilibria data NAME` makes"
            other = "another text is given by --data.source files --data.files TEXT"
            raise UserError(f"{self.path} {found}; {mend}; {other}")
        texts = [path for path in sorted(self.path.iterdir()) if split_of(path.name)]
        files: dict[Split, Path] = {}
        for split in SPLITS:
            matching = [path for path in texts if split_of(path.name) == split]
            if len(matching) > 1:
                names = " and ".join(path.name for path in matching)
                raise UserError(f"{self.path} has {len(matching)} {split} files, {names}; leave only one")
            if matching:
                files[split] = matching[0]
            elif split in needed:
                missing = f"{self.path} has no {split}.txt or {split}.txt.gz"
                if texts:
                    raise UserError(f"{missing} (found: {', '.join(path.name for path in texts)}); add it")
                others = sorted(path.name for path in self.path.iterdir() if path.is_file())
                if not others:
                    raise UserError(f"{missing} (found: no file); add it")
                more = f" and {len(others) - 1} more" if len(others) > 1 else ""
                raise UserError(
                    f"{missing} (found: {others[0]}{more}); add it, or take files of any name: "
                    f"--data.source files --data.files {self.path / others[0]}{' …' if more else ''}"
                )
        return files
