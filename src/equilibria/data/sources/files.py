"""Any text files: divided into units of bounded size, each of which belongs to one split."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

from equilibria.data.sources.base import SPLITS, Source, Split, assigned
from equilibria.data.sources.reading import file_digest, read_pieces, stable_fraction, text_digest, text_size
from equilibria.errors import UserError

_LONGEST_UNIT = 1 << 16  # characters of a unit, all of which are in memory
_SHORTEST_PART = 256  # characters of a part of a line
_MOST_PARTS = 200  # of the whole text, where nothing but parts of lines divides it
_ENOUGH = 0.5  # of what a split should have of the text


@dataclass(frozen=True)
class FilesText(Source):
    """Any text files (`.gz` too), split by a stable hash of each unit, so no unit is in two splits.

    A unit is a paragraph: the lines up to a blank one or, in a file without blank lines, each line. If a split gets
    less than half of its share that way, a unit is a line, and if that is not enough, a part of a line. A unit has
    65,536 characters at most; longer ones are cut at a line's end or a space. Its lines, except blank ones, are
    passages, as in a folder.

    Args:
        files: the files, in the order of the text.
        valid_fraction: share of the text held out for validation, above 0.
        test_fraction: share held out for the test; with 0 there is no test split.

    Raises:
        UserError: no file or an impossible fraction; when used, a file that is missing, unreadable or empty, or too
            little text for the splits.
    """

    files: tuple[Path, ...]
    valid_fraction: float = 0.05
    test_fraction: float = 0.05

    def __post_init__(self) -> None:
        object.__setattr__(self, "files", tuple(map(Path, self.files)))
        if not self.files:
            raise UserError("files is empty; give one text file or more")
        if not (self.valid_fraction > 0 and self.test_fraction >= 0 and self._shares["train"] > 0):
            raise UserError(
                f"valid_fraction = {self.valid_fraction} and test_fraction = {self.test_fraction} leave an empty "
                "split; give fractions above 0 (test: or 0) whose sum is below 1"
            )

    @property
    def name(self) -> str:
        others = len(self.files) - 1
        return self.files[0].name + (f" and {others} more" if others else "")

    def splits(self) -> tuple[Split, ...]:
        return SPLITS if self.test_fraction else SPLITS[:2]

    def pieces(self, split: Split, as_bytes: bool = False) -> Iterator[str]:
        if split not in self.splits():
            raise UserError(f"{self.name} has no {split} split; give a test_fraction above 0")
        for unit in _units(self._division[1]):
            if assigned(_key(unit), self.valid_fraction, self.test_fraction) == split:
                yield from unit

    def whole(self) -> Iterator[str]:
        """The pieces of all splits together, in the order of the text; a UserError if a file cannot be used."""
        return chain.from_iterable(_units(self._paragraphs()))

    def size(self, split: Split) -> int:
        return int(self._shares[split] * self.whole_size())

    def whole_size(self) -> int:
        """The bytes of all files; a UserError if one cannot be read."""
        return sum(map(text_size, self.files))

    def fingerprint(self) -> str:
        fractions = f"{self.valid_fraction!r} {self.test_fraction!r}"
        return text_digest([fractions, "units", *(file_digest(path) for path in self.files)])

    def remark(self) -> str | None:
        tried, _ = self._division
        if len(tried) == 1:
            return None
        return f"{self.name} is split by {tried[-1]}: it has too few {tried[0]} to hold out the requested shares"

    @property
    def _shares(self) -> dict[Split, float]:
        """The share of the text that each split should get."""
        valid, test = self.valid_fraction, self.test_fraction
        return {"train": 1 - (valid + test), "valid": valid, "test": test}

    def _paragraphs(self) -> list["_Cut"]:
        return [_Cut(path, not _has_blank_lines_between(path), _LONGEST_UNIT) for path in self.files]

    def _ways(self) -> Iterator[tuple[str, list["_Cut"]]]:
        """How the files may be cut, from coarse to fine."""
        yield "paragraphs", self._paragraphs()
        yield "lines", [_Cut(path, True, _LONGEST_UNIT) for path in self.files]
        longest = min(max(_SHORTEST_PART, self.whole_size() // _MOST_PARTS), _LONGEST_UNIT)
        yield "parts of lines", [_Cut(path, True, longest) for path in self.files]

    @cached_property
    def _division(self) -> tuple[list[str], list["_Cut"]]:
        """The names of the units that were tried, and the coarsest cuts that give each split enough text, or else the
        finest."""
        tried: list[str] = []
        cuts: list[_Cut] = []
        tally = _Tally(self._shares, ())
        for name, finer in self._ways():
            if finer == cuts:
                continue  # every paragraph is a line
            tried, cuts = [*tried, name], finer
            tally = _Tally(self._shares, _units(cuts))
            if tally.is_enough():
                return tried, cuts
        tally.check(self.name, tried[-1])
        return tried, cuts


@dataclass(frozen=True)
class _Cut:
    """How a file is cut into units: at each line's end or at blank lines, and after `longest` characters."""

    path: Path
    by_line: bool
    longest: int


class _Tally:
    """How much of a text each split gets, and the fraction to fill an empty one."""

    def __init__(self, shares: Mapping[Split, float], units: Iterable[Sequence[str]]) -> None:
        self._shares = shares
        self._characters: dict[Split, int] = dict.fromkeys(SPLITS, 0)
        self._units = 0
        self._lowest = self._lowest_after_valid = math.inf
        for unit in units:
            key = _key(unit)
            place = stable_fraction(key)
            self._units += 1
            self._characters[assigned(key, shares["valid"], shares["test"])] += sum(map(len, unit))
            self._lowest = min(self._lowest, place)
            if place >= shares["valid"]:
                self._lowest_after_valid = min(self._lowest_after_valid, place)

    def is_enough(self) -> bool:
        """Whether each split gets at least half of its share."""
        total = sum(self._characters.values())
        return all(self._characters[split] >= _ENOUGH * share * total for split, share in self._shares.items())

    def check(self, name: str, units: str) -> None:
        """Raises a UserError that names the nearest working fraction if a split is empty."""
        for split in SPLITS:
            if not self._characters[split] and self._shares[split]:
                found = f"none of its {self._units} {units} fell into the {split} split"
                raise UserError(f"{name}: {found}; give {self._mend(split)}")

    def _mend(self, split: Split) -> str:
        if split == "train":
            return "more text, or a smaller valid_fraction and test_fraction"
        needed = self._lowest if split == "valid" else self._lowest_after_valid - self._shares["valid"]
        other = self._shares["test" if split == "valid" else "valid"]
        if needed + other > 0.99:  # no unit, or none to spare
            return "more text"
        return f"{split}_fraction = {math.floor(needed * 1000 + 1) / 1000:g} or more"


def _key(unit: Sequence[str]) -> str:
    """What the split of a unit is chosen by."""
    return "".join(unit).removesuffix("\n")


def _units(cuts: Sequence[_Cut]) -> Iterator[list[str]]:
    """All units of files, each the pieces of its lines."""
    for cut in cuts:
        found = False
        for unit in _units_of_file(cut):
            if not unit[0].isspace() or any(not piece.isspace() for piece in unit):
                found = True
                yield unit
        if not found:
            raise UserError(f"{cut.path} holds no text; omit it or give another file")


def _units_of_file(cut: _Cut) -> Iterator[list[str]]:
    unit: list[str] = []
    length = 0
    line_begins = True
    for piece in read_pieces(cut.path, longest=cut.longest):
        blank = line_begins and piece.endswith("\n") and piece.isspace()
        if unit and (blank or length + len(piece) > cut.longest):
            yield unit
            unit, length = [], 0
        if not blank:
            unit.append(piece)
            length += len(piece)
        line_begins = piece.endswith("\n")
        if unit and line_begins and cut.by_line:
            yield unit
            unit, length = [], 0
    if unit:
        yield unit


def _has_blank_lines_between(path: Path) -> bool:
    text = gap = False
    line_begins = True
    for piece in read_pieces(path):
        if line_begins and piece.isspace():
            gap = text
        elif gap:
            return True
        else:
            text = True
        line_begins = piece.endswith("\n")
    return False
