"""What a run is evaluated on: its own text or task, or another one with the run's own tokens."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from equilibria.configuration import table_of
from equilibria.data import Source, Split, Task
from equilibria.data.prepared import EncodedSplit, encode_text, told
from equilibria.data.progress import UNWATCHED, Progress
from equilibria.data.sources.files import FilesText
from equilibria.data.tasks.base import EvaluationSet
from equilibria.data.tokenizers import Tokenizer, utf_8
from equilibria.inference.loading import LoadedRun, load_task

_BLOCK = 1 << 24  # tokens that are counted at once


@dataclass(frozen=True)
class Subject:
    """Something to evaluate a run's model on.

    Attributes:
        name: for messages.
        part: which split of it, or `"all"`.
        own: whether the run was trained on it.
        content: to be read.
        text: where it is from and what is in it, as the json module writes it: `source` and its keys, `digest`, `own`.
        yardsticks: what its figures are measured by; none for another text, whose training text the run has not seen.
        unknown: its tokens that stand for unknown words; None where the tokenizer has no such token.
    """

    name: str
    part: str
    own: bool
    content: EvaluationSet
    text: Mapping[str, object]
    yardsticks: Mapping[str, float]
    unknown: int | None


@contextmanager
def subject(
    run: LoadedRun, split: Split | None = None, other: Source | Task | None = None, progress: Progress = UNWATCHED
) -> Iterator[Subject]:
    """What a run is evaluated on, for as long as the context lasts.

    Another text is encoded with the run's tokenizer into a temporary file; the run and its cache are left as they are.

    Args:
        run: the run.
        split: a split; None is `"valid"`, and of other files all of them.
        other: another text or task than the run's; None is its own.
        progress: told of each thing that takes a while.

    Raises:
        UserError: it cannot be read, has no such split, or has words that the run's tokenizer has no token for.
    """
    data = run.recipe.data if other is None else other
    own = data == run.recipe.data
    if own or isinstance(data, Task):
        task = load_task(replace(run, recipe=replace(run.recipe, data=data)), progress)
        part = split or "valid"
        content = task.split(part)
        yield Subject(
            name=task.name,
            part=part,
            own=own,
            content=content,
            text=_text(data, task.fingerprint, own),
            yardsticks=task.yardsticks(part),
            unknown=_unknown(content, run.tokenizer),
        )
        return
    with TemporaryDirectory(prefix="equilibria-") as temporary:
        yield _encoded(run, data, split, Path(temporary, "tokens.bin"), progress)


def _encoded(run: LoadedRun, source: Source, split: Split | None, path: Path, progress: Progress) -> Subject:
    """Another text."""
    if split is None and isinstance(source, FilesText):
        part, pieces, size = "all", source.whole(), source.whole_size()
    else:
        part = split or "valid"
        pieces, size = source.pieces(part, run.tokenizer.is_bytes), source.size(part)
    digest = hashlib.blake2b(digest_size=16)

    def digested(read: Iterable[str]) -> Iterator[str]:
        for piece in read:
            digest.update(utf_8(piece))
            yield piece

    with progress.bar(f"encoding {source.name}", size) as advance:
        content = encode_text(digested(told(pieces, advance)), run.tokenizer, path)
    return Subject(
        name=source.name,
        part=part,
        own=False,
        content=content,
        text=_text(source, digest.hexdigest(), own=False),
        yardsticks={},
        unknown=_unknown(content, run.tokenizer),
    )


def _text(data: Source | Task, digest: str, own: bool) -> dict[str, object]:
    given = {name: value for name, value in table_of(data).items() if name not in ("tokenizer", "cache")}
    return {**given, "digest": digest, "own": own}


def _unknown(content: EvaluationSet, tokenizer: Tokenizer) -> int | None:
    if not isinstance(content, EncodedSplit) or tokenizer.unknown is None:
        return None
    blocks = (content.tokens[start : start + _BLOCK] for start in range(0, len(content.tokens), _BLOCK))
    return sum(int(np.count_nonzero(block == tokenizer.unknown)) for block in blocks)
