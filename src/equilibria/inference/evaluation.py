"""How well a model predicts a text or any other segments, and how well its solves converged while doing so."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from functools import partial

import numpy as np
import torch
from torch import Tensor

from equilibria.data.batches import NO_TARGET, Segment
from equilibria.data.prepared import EncodedSplit
from equilibria.data.tasks.base import EvaluationSet
from equilibria.depths import Depth
from equilibria.depths.chunks import per_token
from equilibria.diagnostics.audits import evaluating
from equilibria.distributed import ALONE, World
from equilibria.errors import UserError
from equilibria.models import LanguageModel, Output, TokenModel
from equilibria.solvers import Solution, Status


@dataclass(frozen=True)
class Spread:
    """Mean, 95th percentile and worst of a figure; None where there is none or it is not finite."""

    mean: float | None
    p95: float | None
    worst: float | None

    @classmethod
    def of(cls, values: np.ndarray) -> "Spread":
        """The spread of a one-dimensional array of any length."""
        if values.size == 0:
            return cls(None, None, None)
        figures = (values.mean(dtype=np.float64), np.quantile(values, 0.95), values.max())
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
        evaluations_per_solve: evaluations of the cell per solve of a batch of segments, mean; None for
            explicit depths.
        solves: how many solves there were; 0 for explicit depths.
        unconverged: the fraction of solves that did not converge everywhere; None for explicit depths.
        seconds: wall-clock time.
        tokens_per_second: `tokens / seconds`.
    """

    loss: float
    perplexity: float
    tokens: int
    residual: Spread
    evaluations: Spread
    accuracy: float | None
    evaluations_per_solve: float | None
    solves: int
    unconverged: float | None
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
) -> Evaluation:
    """Predicts every target of a split once (of a text all tokens but the first) and measures loss and convergence.

    The model's mode is restored, and no random number is drawn.

    Args:
        model: on any device.
        split: an encoded text, or the sequences that a task holds out.
        batch_size: rows that are read side by side; of a text, each row is a contiguous part.
        segment_length: tokens per row and solve; without a meaning where sequences are whole.
        memory_length: equilibria handed from one segment to the next; None keeps the model's own.
        max_tokens: read only so many tokens, from the start; None reads all.
        world: processes that all call this with the same model, and all get the result.
        depth: at which it reads; None for the model's own.

    Returns:
        A `TextEvaluation` for a text.

    Raises:
        UserError: a size is not positive, or there is no token to predict.
    """
    segments = split.segments(batch_size, segment_length, max_tokens)
    result = evaluate_segments(model, segments, memory_length, world, depth)
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
) -> Evaluation:
    """Does the same with segments that are read once, in their order; memory flows from one to the next unless that one
    starts anew.

    Raises:
        UserError: the memory length is negative, or there is no token to predict.
    """
    tally = _Tally()
    start = time.perf_counter()
    _check_memory_length(model, memory_length)
    read = partial(model, depth=depth, memory_length=memory_length)
    with evaluating(model), torch.no_grad():
        _read(read, next(model.parameters()).device, _own(segments, world), tally)
    tally = sum(world.gather(tally), _Tally())
    if not tally.tokens:
        raise UserError("the segments have no token to predict; give at least one with a target")
    return tally.evaluation(time.perf_counter() - start)


def _read(read: Callable[..., Output], device: torch.device, segments: Iterable[Segment], tally: "_Tally") -> None:
    memory = None
    for segment in segments:
        memory = None if segment.starts else memory
        output = read(segment.inputs.to(device), segment.targets.to(device), memory)
        memory = output.memory
        tally.add(output.loss, output.solution, segment.targets != NO_TARGET)
        if segment.answers is not None:
            right = output.logits.argmax(dim=-1).cpu() == segment.targets
            tally.hits += int(right[segment.answers].sum())
            tally.answers += int(segment.answers.sum())


def _own(segments: Iterable[Segment], world: World) -> Iterator[Segment]:
    """A process's rows of segments; nothing of those that have none for it."""
    for segment in segments:
        rows = np.array_split(np.arange(len(segment.inputs)), world.size)[world.rank]
        if rows.size:
            own = slice(int(rows[0]), int(rows[-1]) + 1)
            answers = None if segment.answers is None else segment.answers[own]
            yield Segment(segment.inputs[own], segment.targets[own], segment.starts, answers)


def _check_memory_length(model: TokenModel, memory_length: int | None) -> None:
    if memory_length is not None and memory_length < 0:
        raise UserError(f"the memory length must be at least 0, found {memory_length}")
    if memory_length == 0 and isinstance(model, LanguageModel) and model.chunk_length is not None:
        raise UserError(
            f"a memory length of 0: this model solves chunks of {model.chunk_length} tokens, which see each other "
            f"through the memory; give at least 1"
        )


@dataclass
class _Tally:
    nats: float = 0.0
    tokens: int = 0
    hits: int = 0
    answers: int = 0
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
        self.unconverged += solution.status is not Status.CONVERGED
        self.residuals.append(_of_predicted(solution.residual, predicted))
        self.group_evaluations.append(_of_predicted(solution.group_evaluations, predicted))

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
            evaluations_per_solve=self.evaluations / self.solves if self.solves else None,
            solves=self.solves,
            unconverged=self.unconverged / self.solves if self.solves else None,
            seconds=seconds,
            tokens_per_second=self.tokens / seconds,
        )


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty(0)


def _of_predicted(groups: Tensor, predicted: Tensor) -> np.ndarray:
    """A figure per group as one value per predicted token, on the CPU."""
    return per_token(groups.detach().cpu().float(), predicted.shape)[predicted].numpy()
