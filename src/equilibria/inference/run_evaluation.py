"""Evaluating a run: its model, as its recipe or the caller says, on its own text or task, or on another one."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from equilibria.configuration import table_of
from equilibria.configuration.building import check_fit
from equilibria.data import Source, Split, Task
from equilibria.data.prepared import EncodedSplit, encode_text, told
from equilibria.data.progress import UNWATCHED, Progress
from equilibria.data.sources.files import FilesText
from equilibria.data.tasks.base import EvaluationSet, SequenceTask
from equilibria.data.tokenizers import Tokenizer, utf_8
from equilibria.depths import Depth
from equilibria.errors import UserError
from equilibria.inference.contraction import spectral_radii_of
from equilibria.inference.effort import Effort, depth_at
from equilibria.inference.evaluation import Evaluation, Spread, check_lengths, evaluate_model
from equilibria.inference.loading import LoadedRun, load_run, load_task
from equilibria.models import TokenModel
from equilibria.ranges import whole

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


@dataclass(frozen=True, kw_only=True)
class Passes:
    """How a text or a task is read when a run is evaluated.

    Attributes:
        split: which part of the text; None for valid, or all of other files.
        segment_length: tokens of each row per solve; None for as in training.
        batch_size: rows of text read side by side; None for as in training.
        memory_length: equilibria of the segment before that a segment sees; None for as in training. With chunks the
            tokens before a chunk that it sees at most; None for as many as `generate` sees, of a task for all.
        chunk_length: read as texts are written, from left to right over a cache, so many tokens solved together; None
            reads segments, or whole sequences.
        effort: how much is computed per token.

    Raises:
        ValueError: a number is out of its range.
        UserError: both a segment and a chunk length.
    """

    split: Split | None = None
    segment_length: int | None = None
    batch_size: int | None = None
    memory_length: int | None = None
    chunk_length: int | None = None
    effort: Effort = field(default_factory=Effort)

    def __post_init__(self) -> None:
        whole(1, segment_length=self.segment_length, batch_size=self.batch_size)
        whole(1, chunk_length=self.chunk_length)
        whole(0, memory_length=self.memory_length)
        if self.segment_length is not None and self.chunk_length is not None:
            raise UserError(
                f"a segment length of {self.segment_length} beside a chunk length of {self.chunk_length}: chunks are "
                f"what is solved together; leave one of them out"
            )


@dataclass(frozen=True)
class RunEvaluation:
    """An evaluation of a run's model, and what it is measured by.

    Attributes:
        settings: which weights read the text and how; of the effort what was asked for, None for what the recipe says.
        model: the model's figures.
        subject: what was read. Its yardsticks are the same text's n-gram models, counted on the training text
            (`unigram_perplexity`, `trigram_perplexity`, per token); of a task the loss and
            accuracy of a guess (`chance_loss`, `chance_accuracy`).
    """

    settings: dict[str, str | int | float | None]
    model: Evaluation
    subject: Subject

    @property
    def yardsticks(self) -> Mapping[str, float]:
        return self.subject.yardsticks

    def to_json(self) -> dict[str, object]:
        """All figures, in one object."""
        about = {"text": self.subject.text, "split": self.subject.part}
        unknown = {"unknown_tokens": self.subject.unknown}
        return {**about, **self.settings, **self.model.to_json(), **unknown, **self.yardsticks}


def evaluate(
    run: LoadedRun | Path | str,
    passes: Passes | None = None,
    data: Source | Task | None = None,
    progress: Progress = UNWATCHED,
) -> RunEvaluation:
    """Evaluates a run's model on what it was trained on, or on other `data`, encoded with the run's own tokenizer.

    Writes nothing. Tasks, whose sequences are whole, ignore the segment length. At a depth that solves, the spectral
    radius is measured too, of a few tokens.

    Raises:
        UserError: there is no such run, text or split, the model cannot be read so, or it is not for such data; or
            what the run's task, in another size, holds out may be in the run's training.
    """
    loaded = run if isinstance(run, LoadedRun) else load_run(run)
    passes = passes or Passes()
    training = loaded.recipe.training
    model, depth = loaded.model, depth_at(loaded.model, passes.effort)
    chunk_length = passes.chunk_length
    segment_length = None if chunk_length is not None else passes.segment_length or training.segment_length
    batch_size = passes.batch_size or training.batch_size
    if data is not None:
        check_fit(model, data)
        trained = loaded.recipe.data
        if isinstance(data, SequenceTask) and isinstance(trained, SequenceTask):
            data.check_unseen(trained)
    check_lengths(model, passes.memory_length, chunk_length, depth)  # before what takes long
    with _subject(loaded, passes.split, data, progress) as found:
        memory_length = _memory_length(loaded, passes, found.content)
        sizes = batch_size, segment_length or training.segment_length
        with progress.bar(
            "measuring the spectral radius", None, "tokens"
        ):  # before hours of reading, which it must not cost
            radius = _spectral_radius(model, found.content, sizes, depth)
        result = evaluate_model(
            model, found.content, *sizes, memory_length, depth=depth, chunk_length=chunk_length, progress=progress
        )
        return RunEvaluation(
            settings={
                "checkpoint": loaded.checkpoint.name,
                "step": loaded.step,
                "device": next(model.parameters()).device.type,
                "segment_length": segment_length,
                "memory_length": memory_length,
                "chunk_length": chunk_length,
                **asdict(passes.effort),
            },
            model=replace(result, spectral_radius=radius),
            subject=found,
        )


def _memory_length(run: LoadedRun, passes: Passes, content: EvaluationSet) -> int | None:
    if passes.memory_length is not None:
        return passes.memory_length
    if passes.chunk_length is None:
        return run.model.memory_length
    return run.window - 1 if isinstance(content, EncodedSplit) else None


def _spectral_radius(
    model: TokenModel, content: EvaluationSet, sizes: tuple[int, int], depth: Depth | None
) -> Spread | None:
    """Of tokens of the first segment."""
    first = next(iter(content.segments(*sizes)), None)
    radii = None if first is None else spectral_radii_of(model, first.inputs, depth)
    return None if radii is None else Spread.of(radii)


def keep_evaluation(run: LoadedRun, result: RunEvaluation) -> None:
    """Writes a run's evaluation.json, or warns: figures that took hours are worth having without it."""
    run.keep(run.folder.evaluation, json.dumps(result.to_json()) + "\n")


@contextmanager
def _subject(run: LoadedRun, split: Split | None, other: Source | Task | None, progress: Progress) -> Iterator[Subject]:
    """What a run is evaluated on, while the context lasts. Another text is encoded with the run's tokenizer into a
    temporary file; the run and its cache stay as they are."""
    data = run.recipe.data if other is None else other
    own = data == run.recipe.data
    if own or isinstance(data, Task):
        task = load_task(replace(run, recipe=replace(run.recipe, data=data)), progress)
        part = split or "valid"
        content = task.split(part)
        with progress.bar("counting n-grams", None, "tokens"):
            yardsticks = task.yardsticks(part)
        yield Subject(
            name=task.name,
            part=part,
            own=own,
            content=content,
            text=_text(data, task.fingerprint, own),
            yardsticks=yardsticks,
            unknown=_unknown(content, run.tokenizer),
        )
        return
    with TemporaryDirectory(prefix="equilibria-") as temporary:
        yield _encoded(run, data, split, Path(temporary, "tokens.bin"), progress)


def _encoded(run: LoadedRun, source: Source, split: Split | None, path: Path, progress: Progress) -> Subject:
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
