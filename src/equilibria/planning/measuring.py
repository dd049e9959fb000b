"""Training steps on this machine, each about twice as large as the one before: up to the recipe's own, or as far as
time and memory allow. So even the largest recipe is tried, and nothing is tried that does not fit."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from equilibria.configuration.training import TrainingRecipe
from equilibria.data.batching import Batches
from equilibria.depths import Depth
from equilibria.diagnostics import saved_bytes
from equilibria.inference.evaluation import evaluate_segments
from equilibria.machine.speed import wait
from equilibria.models import TokenModel
from equilibria.planning.peak import peak_bytes
from equilibria.training.loop import TrainingLoop
from equilibria.training.parallel import Objective, Slot

_REPEATS = 3  # timed steps of the largest shape, where there is time for them


@dataclass(frozen=True)
class Shape:
    """What a step is taken on: `slots` batches one after another, each of `rows` times `length` tokens."""

    slots: int
    rows: int
    length: int

    @property
    def tokens(self) -> int:
        """In all."""
        return self.slots * self.rows * self.length

    def __str__(self) -> str:
        slots = f"{self.slots} batches of " if self.slots > 1 else ""
        return f"{slots}{self.rows} {'rows' if self.rows > 1 else 'row'} of {self.length} tokens"


def ladder(whole: Shape, shortest: int) -> list[Shape]:
    """Shapes from a small one to the whole one: slots, then rows, then the length are halved on the way down.

    Args:
        whole: the recipe's own.
        shortest: length below which a row is not cut.
    """
    shapes = [whole]
    while True:
        last = shapes[-1]
        if last.slots > 1:
            shapes.append(replace(last, slots=-(-last.slots // 2)))
        elif last.rows > 1:
            shapes.append(replace(last, rows=-(-last.rows // 2)))
        elif last.length > shortest:
            shapes.append(replace(last, length=max(shortest, -(-last.length // 2))))
        else:
            return shapes[::-1]


@dataclass(frozen=True)
class StepCost:
    """What a step of a shape took.

    Attributes:
        shape: of the step.
        seconds: the median of the timed steps.
        steps: how many were timed.
        tokens: predicted in one.
        saved: bytes that one batch keeps for its backward pass.
        peak: bytes at the worst moment beyond what training holds between steps: gradients, `saved`, temporaries.
        memory: bytes of the segment memory of all slots.
        evaluations: of the cell, per solve; None for explicit depths.
        evaluated: tokens predicted per second in evaluation.
    """

    shape: Shape
    seconds: float
    steps: int
    tokens: int
    saved: int
    peak: int
    memory: int
    evaluations: float | None
    evaluated: float


@dataclass(frozen=True)
class Limits:
    """How far measuring goes.

    Attributes:
        seconds: no shape is tried that would take longer than what is left of this.
        free: bytes that a step may take at its peak.
    """

    seconds: float
    free: int


@dataclass(frozen=True)
class Measured:
    """The steps that were tried, from small to large.

    Attributes:
        costs: at least one.
        stopped: why there was no larger one; None where the last is the whole one.
    """

    costs: tuple[StepCost, ...]
    stopped: Literal["time", "memory"] | None

    @property
    def largest(self) -> StepCost:
        """The cost of the largest."""
        return self.costs[-1]

    def seconds_of(self, shape: Shape) -> float:
        """Of a step of a shape, if its time grows with its tokens from that of the largest that was tried."""
        return self.largest.seconds * shape.tokens / self.largest.shape.tokens

    def scaled(self, of: Callable[[StepCost], int], tokens: int) -> int:
        """Bytes for a batch of so many tokens: on the line through the two largest batches that were tried."""
        points = {cost.shape.rows * cost.shape.length: of(cost) for cost in self.costs}
        *_, (most, value) = points.items()
        if len(points) == 1:
            return round(value * tokens / most)
        (fewer, before), *_ = list(points.items())[-2:]
        return max(value, round(value + (value - before) / (most - fewer) * (tokens - most)))


def measure(
    model: TokenModel,
    recipe: TrainingRecipe,
    batches: Callable[[Shape], Batches],
    shapes: Sequence[Shape],
    limits: Limits,
    on_progress: Callable[[str], None],
    depth: Depth | None = None,
) -> Measured:
    """The cost of steps up to the largest shape that the limits allow; the smallest is tried in any case.

    Args:
        model: on its device; it is trained a little.
        recipe: optimizer and rates.
        batches: what to train on, for a shape.
        shapes: from small to large.
        limits: how far to go.
        on_progress: called with a line for each shape.
        depth: that is to be measured; the model's own when None.
    """
    end = time.perf_counter() + limits.seconds
    found = Measured((), None)
    trial = None
    for shape in shapes:
        reason = _too_much(found, shape, end - time.perf_counter(), limits.free, model) if found.costs else None
        if reason is not None:
            found = Measured(found.costs, reason)
            break
        on_progress(f"measuring a step of {shape}")
        trial = _Trial(model, recipe, batches(shape), shape, depth)
        found = Measured((*found.costs, trial.cost()), None)
    assert trial is not None
    *smaller, largest = found.costs
    while len(trial.seconds) < _REPEATS and time.perf_counter() + largest.seconds < end:
        trial.step()
    largest = replace(largest, seconds=statistics.median(trial.seconds), steps=len(trial.seconds))
    return Measured((*smaller, largest), found.stopped)


def _too_much(
    found: Measured, shape: Shape, seconds: float, free: int, model: TokenModel
) -> Literal["time", "memory"] | None:
    """What would not suffice for a shape, if its cost grows with its tokens."""
    last = found.largest
    if found.scaled(lambda cost: cost.peak, shape.rows * shape.length) > free:
        return "memory"
    # Besides the timed step: one that is watched, and a pass forward and an evaluation, about one together.
    steps = _warm_up(model, shape) + 3
    return "time" if last.seconds * shape.tokens / last.shape.tokens * steps > seconds else None


def _warm_up(model: TokenModel, shape: Shape) -> int:
    """Steps before those that count: until the segment memory is full, but at most three."""
    return min(3, max(1, -(-model.memory_length // shape.length)))


class _Trial:
    """Steps of one shape."""

    def __init__(
        self, model: TokenModel, recipe: TrainingRecipe, batches: Batches, shape: Shape, depth: Depth | None
    ) -> None:
        sized = replace(recipe, batch_size=shape.rows, segment_length=shape.length, accumulation=shape.slots)
        self._model, self._batches, self._shape = model, batches, shape
        self._depth = depth
        self._loop = TrainingLoop(model, sized, batches, depth)
        self.seconds: list[float] = []

    def step(self) -> None:
        """A timed step."""
        wait(self._loop.device)
        start = time.perf_counter()
        float(self._loop.step())  # reading the loss waits for the device
        wait(self._loop.device)
        self.seconds.append(time.perf_counter() - start)

    def cost(self) -> StepCost:
        """That of one step after those that warm up."""
        for _ in range(_warm_up(self._model, self._shape)):
            self._loop.step()
        self._loop.statistics.reset()
        before = self._loop.tokens
        self.step()
        tokens = self._loop.tokens - before
        summary = self._loop.statistics.summary()
        assert summary is not None
        saved, memory = self._kept()
        peak = peak_bytes(self._loop.step, self._loop.device)
        (seconds,) = self.seconds
        return StepCost(
            shape=self._shape,
            seconds=seconds,
            steps=1,
            tokens=tokens,
            saved=saved,
            peak=peak,
            memory=memory * self._shape.slots,
            evaluations=summary.evaluations,
            evaluated=self._evaluated(),
        )

    def _kept(self) -> tuple[int, int]:
        """Bytes that one batch saves for its backward pass, and bytes of its segment memory once that is full."""
        model, device = self._model, self._loop.device
        batch = self._batches.at(self._loop.done)
        inputs, targets = (part[: self._shape.rows].to(device) for part in (batch.inputs, batch.targets))
        model.train()
        memory = None
        # A model without memory has nothing to warm up, and one that reads pairs does no pass without a target.
        passes = _warm_up(model, self._shape) if model.memory_length else 0
        with torch.no_grad():
            for _ in range(passes):
                memory = model(inputs, memory=memory, depth=self._depth).memory
        remembered = [] if memory is None else memory.flatten()

        objective = Objective(model, self._loop.recipe.precision)
        slot = Slot(inputs, targets, memory, torch.ones((), device=device), self._depth)

        def graph() -> Tensor:
            return objective(slot)[0]

        known = [*model.parameters(), *model.buffers(), inputs, targets, *remembered]
        return saved_bytes(graph, known), sum(state.untyped_storage().nbytes() for state in remembered)

    def _evaluated(self) -> float:
        """Tokens per second of an evaluation pass over one batch."""
        batch = self._batches.at(self._loop.done)
        rows = slice(self._shape.rows)
        answers = None if batch.answers is None else batch.answers[rows]
        segment = replace(batch, inputs=batch.inputs[rows], targets=batch.targets[rows], answers=answers, starts=True)
        seconds = evaluate_segments(self._loop.evaluated, [segment], depth=self._depth).seconds
        return int((segment.targets >= 0).sum()) / seconds
