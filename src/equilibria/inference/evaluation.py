"""How well a model predicts a text or any other segments, and how well its solves converged while doing so."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from operator import length_hint

import numpy as np
import torch
from torch import Tensor

from equilibria.cells import Cache, Memory
from equilibria.data.batches import NO_TARGET, Segment
from equilibria.data.prepared import EncodedSplit
from equilibria.data.progress import UNWATCHED, Progress, counted
from equilibria.data.tasks.base import EvaluationSet
from equilibria.depths import Depth
from equilibria.depths.chunks import per_token
from equilibria.diagnostics.audits import evaluating
from equilibria.distributed import ALONE, World
from equilibria.errors import UserError
from equilibria.models import LanguageModel, Output, TokenModel
from equilibria.solvers import Solution


@dataclass(frozen=True)
class Spread:
    """Mean, median, 90th and 95th percentile and worst of a figure; None where there is none or it is not finite."""

    mean: float | None
    median: float | None
    p90: float | None
    p95: float | None
    worst: float | None

    @classmethod
    def of(cls, values: np.ndarray) -> "Spread":
        """The spread of a one-dimensional array of any length."""
        if values.size == 0:
            return cls(None, None, None, None, None)
        with np.errstate(invalid="ignore"):  # between infinite values
            figures = (values.mean(dtype=np.float64), *np.quantile(values, (0.5, 0.9, 0.95)), values.max())
        return cls(*(float(figure) if math.isfinite(figure) else None for figure in figures))


@dataclass(frozen=True)
class Evaluation:
    """The result of evaluating a model.

    Attributes:
        loss: mean negative log-likelihood per token, in nats.
        perplexity: `exp(loss)`, per token.
        tokens: tokens predicted, each once.
        residual: over predicted tokens; of the state that the prediction was made from.
        evaluations: over predicted tokens: evaluations after which a token's state had converged, or all
            that were spent where it had not.
        accuracy: share of the answers (see `Segment`) that are the most likely class; None where there are none.
        last_accuracy: the same of the last answer of each sequence alone.
        sequence_accuracy: share of the sequences whose answers are all right.
        evaluations_per_solve: evaluations of the cell per solve of a batch of segments, mean; None for
            explicit depths.
        solves: how many solves there were; 0 for explicit depths.
        unconverged: share of the predicted tokens whose state did not converge; None for explicit depths.
        spectral_radius: of the map at the solution, over a sample of tokens (see `spectral_radii_of`); None where it
            was not measured, and for explicit depths.
        seconds: wall-clock time.
        tokens_per_second: `tokens / seconds`.
    """

    loss: float
    perplexity: float
    tokens: int
    residual: Spread
    evaluations: Spread
    accuracy: float | None
    last_accuracy: float | None
    sequence_accuracy: float | None
    evaluations_per_solve: float | None
    solves: int
    unconverged: float | None
    spectral_radius: Spread | None
    seconds: float
    tokens_per_second: float

    def to_json(self) -> dict[str, object]:
        """The figures as nested dictionaries that the json module writes; what is not finite becomes None."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }


@dataclass(frozen=True)
class TextEvaluation(Evaluation):
    """The result of evaluating a model on a text.

    Attributes:
        word_perplexity: perplexity per whitespace-separated word, the end of a passage counted as one.
        bits_per_byte: negative log-likelihood in bits per byte of UTF-8 text.
        words, bytes: those of the text, in the proportion of its tokens that were predicted: all but the first.
    """

    word_perplexity: float
    bits_per_byte: float
    words: int
    bytes: int


def perplexity(loss: float) -> float:
    """`exp(loss)`, infinite where that is too large for a float."""
    return math.exp(loss) if loss < 700 else math.inf


def evaluate_model(
    model: TokenModel,
    split: EvaluationSet,
    batch_size: int,
    segment_length: int,
    memory_length: int | None = None,
    max_tokens: int | None = None,
    world: World = ALONE,
    depth: Depth | None = None,
    chunk_length: int | None = None,
    progress: Progress = UNWATCHED,
) -> Evaluation:
    """Predicts every target of a split once (of a text all tokens but the first) and measures loss and convergence.

    The model's mode is restored, and no random number is drawn.

    Args:
        model: on any device.
        split: an encoded text, or the sequences that a task holds out.
        batch_size: rows that are read side by side; of a text, each row is a contiguous part.
        segment_length: tokens per row and solve; without a meaning where sequences are whole, and with chunks.
        memory_length: equilibria handed from one segment to the next; None keeps the model's own. With chunks the
            tokens before a chunk that it sees at most; None for all.
        max_tokens: read only so many tokens, from the start; None reads all.
        world: processes that all call this with the same model, and all get the result.
        depth: at which it reads; None for the model's own.
        chunk_length: read as texts are written, from left to right over a cache, so many tokens solved together; None
            reads segments, or whole sequences.
        progress: is told of each batch.

    Returns:
        A `TextEvaluation` for a text.

    Raises:
        UserError: a size is not positive, there is no token to predict, or the model cannot read chunks.
    """
    segments = split.segments(batch_size, segment_length if chunk_length is None else chunk_length, max_tokens)
    with progress.bar("evaluating", length_hint(segments) or None, "batches") as advance:
        watched = counted(segments, advance)
        result = evaluate_segments(model, watched, memory_length, world, depth, chunk_length)
    return _of_text(result, split) if isinstance(split, EncodedSplit) else result


def _of_text(result: Evaluation, split: EncodedSplit) -> TextEvaluation:
    nats, share = result.loss * result.tokens, result.tokens / len(split.tokens)
    words, size = split.words * share, split.bytes * share
    return TextEvaluation(
        **{entry.name: getattr(result, entry.name) for entry in fields(result)},
        word_perplexity=perplexity(nats / words),
        bits_per_byte=nats / math.log(2) / size,
        words=round(words),
        bytes=round(size),
    )


def evaluate_segments(
    model: TokenModel,
    segments: Iterable[Segment],
    memory_length: int | None = None,
    world: World = ALONE,
    depth: Depth | None = None,
    chunk_length: int | None = None,
) -> Evaluation:
    """Does the same with segments that are read once, in their order; memory flows from one to the next unless that one
    starts anew.

    Raises:
        UserError: a length is out of its range, there is no token to predict, or the model cannot read chunks.
    """
    tally = _Tally()
    start = time.perf_counter()
    check_lengths(model, memory_length, chunk_length, depth)
    read: Callable[..., Output] = partial(model, depth=depth, memory_length=memory_length)
    if chunk_length is not None:
        read, segments = partial(_decoded, model, memory_length, depth), _chunks(segments, chunk_length)
    with evaluating(model), torch.no_grad():
        _read(read, next(model.parameters()).device, _own(segments, world), tally)
    tally = sum(world.gather(tally), _Tally())
    if not tally.tokens:
        raise UserError("the segments have no token to predict; give at least one with a target")
    return tally.evaluation(time.perf_counter() - start)


def _read(read: Callable[..., Output], device: torch.device, segments: Iterable[Segment], tally: "_Tally") -> None:
    memory = sequences = None
    for segment in segments:
        if segment.starts:
            memory, sequences = None, tally.ended(sequences)
        output = read(segment.inputs.to(device), segment.targets.to(device), memory)
        memory = output.memory
        tally.add(output.loss, output.solution, segment.targets != NO_TARGET)
        if segment.answers is not None:
            right = output.logits.argmax(dim=-1).cpu() == segment.targets
            tally.hits += int(right[segment.answers].sum())
            tally.answers += int(segment.answers.sum())
            sequences = sequences or _Sequences.begun(len(right))
            sequences.go_on(right, segment.answers)
    tally.ended(sequences)


def _decoded(
    model: TokenModel,
    limit: int | None,
    depth: Depth | None,
    inputs: Tensor,
    targets: Tensor,
    memory: Cache | Memory | None,
) -> Output:
    """A chunk, read into a new cache or into that after the chunk before."""
    if memory is None:
        step = model.prefill(inputs, limit=limit, depth=depth)
    else:
        step = model.decode(inputs, memory, depth=depth)
    return Output(step.hidden_BLD, step.embedding, model.loss(step.hidden_BLD, targets), step.cache, step.solution)


def _chunks(segments: Iterable[Segment], length: int) -> Iterator[Segment]:
    for segment in segments:
        for first in range(0, segment.inputs.shape[1], length):
            chunk = slice(first, first + length)
            answers = None if segment.answers is None else segment.answers[:, chunk]
            starts = segment.starts and not first
            yield Segment(segment.inputs[:, chunk], segment.targets[:, chunk], starts, answers)


def _own(segments: Iterable[Segment], world: World) -> Iterator[Segment]:
    """A process's rows of segments; nothing of those that have none for it."""
    for segment in segments:
        rows = np.array_split(np.arange(len(segment.inputs)), world.size)[world.rank]
        if rows.size:
            own = slice(int(rows[0]), int(rows[-1]) + 1)
            answers = None if segment.answers is None else segment.answers[own]
            yield Segment(segment.inputs[own], segment.targets[own], segment.starts, answers)


def check_lengths(model: TokenModel, memory_length: int | None, chunk_length: int | None, depth: Depth | None) -> None:
    """Raises a UserError where a length is out of its range, or the model cannot read chunks."""
    if memory_length is not None and memory_length < 0:
        raise UserError(f"the memory length must be at least 0, found {memory_length}")
    if chunk_length is not None:
        if chunk_length < 1:
            raise UserError(f"the chunk length must be at least 1, found {chunk_length}")
        if not model.decodes(depth):
            raise UserError(
                f"a chunk length of {chunk_length}: this model keeps nothing in a cache, so it reads whole segments "
                f"only; leave the chunk length out"
            )
        if memory_length == 0:
            raise UserError("a memory length of 0: chunks see each other through the cache; give at least 1")
        return
    if memory_length == 0 and isinstance(model, LanguageModel) and model.chunk_length is not None:
        raise UserError(
            f"a memory length of 0: this model solves chunks of {model.chunk_length} tokens, which see each other "
            f"through the memory; give at least 1"
        )


@dataclass
class _Sequences:
    """Sequences side by side, as far as they have been read: which had answers, all of them right, and the latest."""

    asked_B: Tensor
    right_B: Tensor
    latest_B: Tensor

    @classmethod
    def begun(cls, rows: int) -> "_Sequences":
        nothing_B = torch.zeros(rows, dtype=torch.bool)
        return cls(nothing_B, ~nothing_B, nothing_B)

    def go_on(self, right_BL: Tensor, answers_BL: Tensor) -> None:
        asked_B = answers_BL.any(dim=1)
        last_B1 = answers_BL.shape[1] - 1 - answers_BL.flip(1).int().argmax(dim=1, keepdim=True)
        self.latest_B = torch.where(asked_B, right_BL.gather(1, last_B1).squeeze(1), self.latest_B)
        self.right_B = self.right_B & (right_BL | ~answers_BL).all(dim=1)
        self.asked_B = self.asked_B | asked_B


@dataclass
class _Tally:
    nats: float = 0.0
    tokens: int = 0
    hits: int = 0
    answers: int = 0
    sequences: int = 0
    sequence_hits: int = 0
    last_hits: int = 0
    residuals: list[np.ndarray] = field(default_factory=list)
    group_evaluations: list[np.ndarray] = field(default_factory=list)
    evaluations: int = 0
    solves: int = 0
    unconverged: int = 0

    def add(self, loss: Tensor | None, solution: Solution | None, predicted: Tensor) -> None:
        """Counts one segment; `predicted` (B, L) on the CPU marks the tokens that are targets."""
        count = int(predicted.sum())
        if count and loss is not None:
            self.nats += float(loss) * count
        self.tokens += count
        if solution is None:
            return
        self.evaluations += solution.evaluations
        self.solves += 1
        self.unconverged += int((_of_predicted(solution.converged, predicted) == 0).sum())
        self.residuals.append(_of_predicted(solution.residual, predicted))
        self.group_evaluations.append(_of_predicted(solution.group_evaluations, predicted))

    def ended(self, sequences: _Sequences | None) -> None:
        """Counts sequences that have been read to their end."""
        if sequences is not None:
            self.sequences += int(sequences.asked_B.sum())
            self.sequence_hits += int((sequences.asked_B & sequences.right_B).sum())
            self.last_hits += int(sequences.latest_B.sum())

    def __add__(self, other: "_Tally") -> "_Tally":
        return _Tally(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    def evaluation(self, seconds: float) -> Evaluation:
        loss = self.nats / self.tokens
        return Evaluation(
            loss=loss,
            perplexity=perplexity(loss),
            tokens=self.tokens,
            residual=Spread.of(_joined(self.residuals)),
            evaluations=Spread.of(_joined(self.group_evaluations)),
            accuracy=self.hits / self.answers if self.answers else None,
            last_accuracy=self.last_hits / self.sequences if self.sequences else None,
            sequence_accuracy=self.sequence_hits / self.sequences if self.sequences else None,
            evaluations_per_solve=self.evaluations / self.solves if self.solves else None,
            solves=self.solves,
            unconverged=self.unconverged / self.tokens if self.solves else None,
            spectral_radius=None,
            seconds=seconds,
            tokens_per_second=self.tokens / seconds,
        )


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty(0)


def _of_predicted(groups: Tensor, predicted: Tensor) -> np.ndarray:
    """A figure per group as one value per predicted token, on the CPU."""
    return per_token(groups.detach().cpu().float(), predicted.shape)[predicted].numpy()
