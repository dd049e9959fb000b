"""One folder of text from two sources, in turn: the English that Python carries, and a folder."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from equilibria.data import EmbeddedText, Source, TextFolder
from equilibria.data.corpus import Split
from equilibria.data.reading import text_digest
from equilibria.reproduction.runs import write_text

_RUN = 512
"""Characters of one source before the other follows, about: few, or the loss of a step would show which of them was
read last, and rows with different numbers of steps could not be compared."""


def mixed_folder(path: Path, beside: Path) -> Path:
    """Writes the train and valid text of the embedded source and of the folder `path`, in turn.

    Both keep their order and end together, so that a stretch of either split has the share of both that the whole has.

    Returns:
        A folder in `beside`, named by both texts; it is written once.

    Raises:
        UserError: `path` is no folder in the layout of WikiText.
    """
    sources = [EmbeddedText(), TextFolder(path)]
    digest = text_digest([str(_RUN), *(source.fingerprint() for source in sources)])[:8]
    folder = beside / f"{sources[1].name}-and-embedded-{digest}"
    for split in ("train", "valid"):
        file = folder / f"{split}.txt"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, "".join(_in_turn(sources, split)))
    return folder


def _in_turn(sources: Sequence[Source], split: Split) -> Iterator[str]:
    """Runs of whole passages; next comes the source of which the smaller share has been read."""
    runs = [list(_runs(source, split)) for source in sources]
    places = [(number / len(of), which, number) for which, of in enumerate(runs) for number in range(len(of))]
    for _, which, number in sorted(places):
        yield runs[which][number]


def _runs(source: Source, split: Split) -> Iterator[str]:
    """The text in runs of whole passages."""
    read = 0

    def run_of(piece: str) -> int:
        nonlocal read
        read += len(piece)
        return (read - len(piece)) // _RUN

    return ("".join(pieces) for _, pieces in groupby(source.pieces(split), run_of))
