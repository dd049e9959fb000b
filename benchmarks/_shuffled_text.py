"""One folder of text from one or several sources, shuffled in short runs of whole passages.

Rows that end after different numbers of steps end at different places of a text read in its order, the same ones for
every seed, and have just seen what it is about there; that can move a final loss by 1 %. Shuffled, all places are alike
and the part of the validation text that is read is like the rest.
"""

import random
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from equilibria.data import Source
from equilibria.data.sources.base import Split
from equilibria.data.sources.reading import text_digest
from equilibria.files.durable import save_text

_RUN = 512
"""Characters of a run, about: several times a segment of the laboratory's proxies."""


def shuffled_folder(sources: Sequence[Source], beside: Path, characters: int | None = None) -> Path:
    """Writes the train and valid text of all sources, in an order that is random but always the same.

    Args:
        sources: of the text.
        beside: where the folder will be.
        characters: of the training text, about, from its beginning; all when None.

    Returns:
        A folder in `beside`, named by all texts; it is written once.

    Raises:
        UserError: a source cannot be read.
    """
    digest = text_digest(
        [str(_RUN), *([] if characters is None else [str(characters)]), *(source.fingerprint() for source in sources)]
    )[:8]
    folder = beside / f"{'-and-'.join(source.name for source in sources)}-shuffled-{digest}"
    splits: tuple[Split, ...] = ("train", "valid")
    for split in splits:
        file = folder / f"{split}.txt"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            runs = [run for source in sources for run in _runs(source, split)]
            random.Random(split).shuffle(runs)
            save_text(file, "".join(_first(runs, characters if split == "train" else None)))
    return folder


def _first(runs: Sequence[str], characters: int | None) -> Iterator[str]:
    """Whole runs, until there are so many characters."""
    read = 0
    for run in runs:
        if characters is not None and read >= characters:
            return
        read += len(run)
        yield run


def _runs(source: Source, split: Split) -> Iterator[str]:
    """The text in runs of whole passages."""
    read = 0

    def run_of(piece: str) -> int:
        nonlocal read
        read += len(piece)
        return (read - len(piece)) // _RUN

    return ("".join(pieces) for _, pieces in groupby(source.pieces(split), run_of))
