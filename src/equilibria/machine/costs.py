"""Training steps on this machine, each about twice as large as the one before, up to the recipe's own or as far as time
and memory allow: even the largest recipe is measured, and nothing runs that does not fit."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from equilibria.cells import Memory
from equilibria.configuration import TrainingRecipe
from equilibria.data.batches import Batches
from equilibria.depths import Depth
from equilibria.inference.evaluation import evaluate_segments
from equilibria.measuring.memory import peak_bytes
from equilibria.measuring.steps import step_memory, timed_step
from equilibria.models import TokenModel
from equilibria.training.loop import TrainingLoop
from equilibria.training.parallel import MicroBatch, Objective

_REPEATS = 3  # timed steps of the largest size, if there is time


@dataclass(frozen=True)
class StepSize:
    """The size of a step: `micro_batches` one after another, each of `rows` times `length` tokens."""

    micro_batches: int
    rows: int
    length: int

    @property
    def tokens(self) -> int:
        return self.micro_batches * self.rows * self.length

    def __str__(self) -> str:
        micro_batches = f"{self.micro_batches} micro-batches of " if self.micro_batches > 1 else ""
        return f"{micro_batches}{self.rows} {'rows' if self.rows > 1 else 'row'} of {self.length} tokens"


def ladder(whole: StepSize, shortest: int) -> list[StepSize]:
    """Sizes up to the whole one. On the way down micro-batches, then rows, then lengths above `shortest` are halved."""
    sizes = [whole]
    while True:
        last = sizes[-1]
        if last.micro_batches > 1:
            sizes.append(replace(last, micro_batches=-(-last.micro_batches // 2)))
        elif last.rows > 1:
            sizes.append(replace(last, rows=-(-last.rows // 2)))
        elif last.length > shortest:
            sizes.append(replace(last, length=max(shortest, -(-last.length // 2))))
        else:
            return sizes[::-1]


@dataclass(frozen=True)
class StepCost:
    """The cost of a step of one size.

    Attributes:
        seconds: the median of the timed `steps`.
        tokens: predicted in a step.
        saved: bytes that one micro-batch saves for its backward pass.
        peak: bytes at the peak beyond what training holds between steps: gradients, `saved`, temporaries.
        memory: bytes of the segment memory of all micro-batches.
        evaluations: of the cell, per solve; None for explicit depths.
        evaluated: tokens predicted per second in evaluation.
    """

    size: StepSize
    seconds: float
    steps: int
    tokens: int
    saved: int
    peak: int
    memory: int
    evaluations: float | None
    evaluated: float


@dataclass(frozen=True)
class Measurements:
    """The steps that were measured, from small to large, and why there was no larger one, if so."""

    costs: tuple[StepCost, ...]
    stopped: Literal["time", "memory"] | None

    @property
    def largest(self) -> StepCost:
        return self.costs[-1]

    def seconds_of(self, size: StepSize) -> float:
        """Seconds of a step, extrapolated in proportion to its tokens from the largest step that was measured."""
        return self.largest.seconds * size.tokens / self.largest.size.tokens

    def scaled(self, of: Callable[[StepCost], int], tokens: int) -> int:
        """Bytes for a micro-batch of `tokens`, on the line through the two largest ones that were measured."""
        points = {cost.size.rows * cost.size.length: of(cost) for cost in self.costs}
        *_, (most, value) = points.items()
        if len(points) == 1:
            return round(value * tokens / most)
        (fewer, before), *_ = list(points.items())[-2:]
        return max(value, round(value + (value - before) / (most - fewer) * (tokens - most)))


def measure(
    model: TokenModel,
    recipe: TrainingRecipe,
    batches: Callable[[StepSize], Batches],
    sizes: Sequence[StepSize],
    seconds: float,
    free: int,
    on_progress: Callable[[str], None],
    depth: Depth | None = None,
) -> Measurements:
    """The cost of steps up to the largest size that time and memory allow; the smallest is tried in any case.

    Args:
        model: on its device; it is trained a little.
        recipe: optimizer and rates.
        batches: the data for a size.
        sizes: from small to large.
        seconds: for measuring in all.
        free: bytes that a step may take at its peak.
        on_progress: receives a line for each size.
        depth: to measure at; None for the model's own.
    """
    end = time.perf_counter() + seconds
    found = Measurements((), None)
    trial = None
    for size in sizes:
        reason = _too_much(found, size, end - time.perf_counter(), free, model) if found.costs else None
        if reason is not None:
            found = Measurements(found.costs, reason)
            break
        on_progress(f"measuring a step of {size}")
        trial = _Trial(model, recipe, batches(size), size, depth)
        found = Measurements((*found.costs, trial.cost()), None)
    assert trial is not None
    *smaller, largest = found.costs
    while len(trial.seconds) < _REPEATS and time.perf_counter() + largest.seconds < end:
        trial.step()
    largest = replace(largest, seconds=statistics.median(trial.seconds), steps=len(trial.seconds))
    return Measurements((*smaller, largest), found.stopped)


def _too_much(
    found: Measurements, size: StepSize, seconds: float, free: int, model: TokenModel
) -> Literal["time", "memory"] | None:
    """What a size would exceed, if its cost grows with its tokens."""
    if found.scaled(lambda cost: cost.peak, size.rows * size.length) > free:
        return "memory"
    # Besides the timed step: one that is watched, and a forward pass and an evaluation, which take about a step.
    steps = _warm_up(model, size) + 3
    return "time" if found.seconds_of(size) * steps > seconds else None


def _warm_up(model: TokenModel, size: StepSize) -> int:
    """Steps before those that count: until the segment memory is full, at most three."""
    return min(3, max(1, -(-model.memory_length // size.length)))


class _Trial:
    """Steps of one size."""

    def __init__(
        self, model: TokenModel, recipe: TrainingRecipe, batches: Batches, size: StepSize, depth: Depth | None
    ) -> None:
        sized = replace(recipe, batch_size=size.rows, segment_length=size.length, accumulation=size.micro_batches)
        self._model, self._batches, self._size, self._depth = model, batches, size, depth
        self._loop = TrainingLoop(model, sized, batches, depth)
        self.seconds: list[float] = []

    def step(self) -> None:
        self.seconds.append(timed_step(self._loop))

    def cost(self) -> StepCost:
        """The cost of one step after the warm-up."""
        for _ in range(_warm_up(self._model, self._size)):
            self._loop.step()
        self._loop.statistics.reset()
        before = self._loop.tokens
        self.step()
        tokens, summary = self._loop.tokens - before, self._loop.statistics.summary()
        assert summary is not None
        saved, segments = self._memory()
        return StepCost(
            size=self._size,
            seconds=self.seconds[0],
            steps=1,
            tokens=tokens,
            saved=saved,
            peak=peak_bytes(self._loop.step, self._loop.device),
            memory=segments * self._size.micro_batches,
            evaluations=summary.evaluations,
            evaluated=self._evaluated(),
        )

    def _memory(self) -> tuple[int, int]:
        """Bytes that one micro-batch saves and those of its segment memory, once that is full."""
        model, device = self._model, self._loop.device
        batch = self._batches.at(self._loop.done)
        inputs, targets = (part[: self._size.rows].to(device) for part in (batch.inputs, batch.targets))
        # A model without memory has nothing to warm up, and one that reads pairs takes no pass without a target.
        passes = _warm_up(model, self._size) if model.memory_length else 0
        objective = Objective(model, self._loop.recipe.precision)
        weight = torch.ones((), device=device)

        def graph(memory: Memory | None) -> Tensor:
            return objective(MicroBatch(inputs, targets, memory, weight, self._depth))[0]

        return step_memory(model, [inputs] * passes, [inputs, targets], graph, self._depth)

    def _evaluated(self) -> float:
        """Tokens per second of an evaluation pass over one batch."""
        batch = self._batches.at(self._loop.done)
        rows = slice(self._size.rows)
        answers = None if batch.answers is None else batch.answers[rows]
        segment = replace(batch, inputs=batch.inputs[rows], targets=batch.targets[rows], answers=answers, starts=True)
        seconds = evaluate_segments(self._loop.evaluated, [segment], depth=self._depth).seconds
        return int((segment.targets >= 0).sum()) / seconds
