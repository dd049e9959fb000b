"""The plan of a run: its parameters counted and its steps measured; from both, its memory and its time."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise

import torch

from equilibria.configuration import Recipe
from equilibria.configuration.building import build_model
from equilibria.data.batches import NO_TARGET, Batches, TrainingStream, ZipfBatches
from equilibria.data.tasks.base import Task
from equilibria.machine.costs import Budget, Measurements, StepCost, StepSize, ladder, measure
from equilibria.machine.footprint import Footprint, footprint_of
from equilibria.machine.memory import available_memory
from equilibria.models import LanguageModel
from equilibria.training.randomness import seed_everything

_SHORTEST = 16  # tokens of the shortest rows that are measured
_UNKNOWN = 2**31  # bytes assumed to be free if that is unknown


@dataclass(frozen=True)
class PlannedData:
    """What a run trains on, as far as it is known.

    Attributes:
        vocabulary_size: tokens in the vocabulary.
        task: the text or task; None if random tokens stand in for a text.
    """

    vocabulary_size: int
    task: Task | None = None


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on a device: those held throughout training, and those of a step at the recipe's size.

    Attributes:
        weights, gradients, optimizer, average: see `Footprint`.
        saved: for the backward pass of a batch; None if no step could be measured.
        temporaries: of the solver and others, at the peak of a step; likewise.
        segments: the segment memory of all micro-batches of a step; likewise.
        free: on the device before anything is allocated; None if unknown.
    """

    weights: int
    gradients: int
    optimizer: int
    average: int
    saved: int | None
    temporaries: int | None
    segments: int | None
    free: int | None

    @property
    def total(self) -> int:
        """All that is known, apart from what is free."""
        measured = (self.saved or 0) + (self.temporaries or 0) + (self.segments or 0)
        return self.weights + self.gradients + self.optimizer + self.average + measured


@dataclass(frozen=True)
class Plan:
    """What a run will cost. What could not be measured is None.

    Attributes:
        footprint: parameters, and what training holds.
        memory: on the device.
        size: of the recipe's own steps.
        cost: of a step that was measured, after the warm-up of the depth; of a smaller one if the recipe's own would
            take too much time or memory.
        step_seconds: of a step of the recipe, averaged over the warm-up of the depth and what follows it.
        training_seconds: of all steps.
        evaluation_seconds: of all evaluations on validation text; None, too, if its length is unknown.
        passes: how often the training text is read.
        notes: what was not measured, or how it was.
    """

    footprint: Footprint
    memory: MemoryPlan
    size: StepSize
    cost: StepCost | None = None
    step_seconds: float | None = None
    training_seconds: float | None = None
    evaluation_seconds: float | None = None
    passes: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def tokens_per_second(self) -> float | None:
        """Predicted in training."""
        if self.cost is None or self.step_seconds is None:
            return None
        return self.cost.tokens * self.size.tokens / self.cost.size.tokens / self.step_seconds

    @property
    def run_seconds(self) -> float | None:
        """Training and evaluations."""
        return None if self.training_seconds is None else self.training_seconds + (self.evaluation_seconds or 0.0)

    def to_json(self) -> dict[str, object]:
        """All figures."""
        own = ("step_seconds", "training_seconds", "evaluation_seconds", "passes")
        return {
            "parameters": {**self.footprint.parameters, "total": self.footprint.total},
            "memory": {**asdict(self.memory), "total": self.memory.total},
            "step": asdict(self.size),
            "measured": None if self.cost is None else asdict(self.cost),
            **{name: getattr(self, name) for name in own},
            "tokens_per_second": self.tokens_per_second,
            "run_seconds": self.run_seconds,
            "notes": list(self.notes),
        }


def plan_run(
    recipe: Recipe, data: PlannedData, device: torch.device, seconds: float, on_progress: Callable[[str], None]
) -> Plan:
    """Plans a run.

    Args:
        recipe: of the run.
        data: what it trains on.
        device: where it trains.
        seconds: roughly how long measuring may take.
        on_progress: called with a line for each step size.

    Raises:
        UserError: the recipe's numbers do not fit together, or the text is too short for them.
    """
    training = recipe.training
    footprint, free = footprint_of(recipe, data.vocabulary_size), available_memory(device)
    size = StepSize(training.accumulation, training.batch_size, _length(recipe, data))
    batches = _supply(data)
    passes = _passes(training.steps, batches(size))
    notes = _notes_beforehand(recipe, data)
    left = (_UNKNOWN if free is None else free) - footprint.held
    # Building a model and taking steps need temporaries as large as the weights.
    if left < footprint.weights:
        held = f"weights, gradients, optimizer and average take {_gib(footprint.held)} of {_gib(free)}"
        return Plan(
            footprint, _memory(footprint, free), size, passes=passes, notes=(*notes, f"no step was measured: {held}")
        )
    sizes = ladder(size, _SHORTEST if _cut(data) else size.length)
    phases = _measured_phases(recipe, data, device, sizes, Budget(seconds, left), on_progress)
    cost, evaluated = phases[-1][1].largest, _evaluated_tokens(recipe, data)
    step_seconds = sum(share * measured.seconds_of(size) for share, measured in phases)
    return Plan(
        footprint=footprint,
        memory=max(
            (_memory(footprint, free, measured, size) for _, measured in phases), key=lambda memory: memory.total
        ),
        size=size,
        cost=cost,
        step_seconds=step_seconds,
        training_seconds=step_seconds * training.steps,
        evaluation_seconds=None if evaluated is None else evaluated / cost.evaluated,
        passes=passes,
        notes=(*notes, *dict.fromkeys(note for _, measured in phases for note in _notes_on(measured, size))),
    )


def _memory(
    footprint: Footprint, free: int | None, found: Measurements | None = None, size: StepSize | None = None
) -> MemoryPlan:
    """What is held, and what was measured of a step, scaled to its full size."""
    held = (footprint.weights, footprint.gradients, footprint.optimizer, footprint.average)
    if found is None or size is None:
        return MemoryPlan(*held, None, None, None, free)
    last, tokens = found.largest, size.rows * size.length
    saved, peak = found.scaled(lambda cost: cost.saved, tokens), found.scaled(lambda cost: cost.peak, tokens)
    segments = round(last.memory * size.micro_batches * size.rows / (last.size.micro_batches * last.size.rows))
    return MemoryPlan(*held, saved, max(0, peak - saved - footprint.gradients), segments, free)


def _passes(steps: int, batches: Batches) -> float | None:
    return steps / len(batches) if isinstance(batches, TrainingStream) else None


def _measured_phases(
    recipe: Recipe,
    data: PlannedData,
    device: torch.device,
    sizes: Sequence[StepSize],
    budget: Budget,
    on_progress: Callable[[str], None],
) -> list[tuple[float, Measurements]]:
    """The warm-up of the depth, if there is one, and what follows it: the share of each in all steps, and the cost of a
    step halfway through it."""
    training, batches = recipe.training, _supply(data)
    seed_everything(training.seed)
    model = build_model(recipe, data.vocabulary_size).to(device)
    steps = training.steps
    if not isinstance(model, LanguageModel):
        return [(1.0, measure(model, training, batches, sizes, budget, on_progress))]
    ends = sorted({0, min(model.depth.warmup(steps), steps), steps})
    budget = replace(budget, seconds=budget.seconds / (len(ends) - 1))
    phases = []
    for begin, end in pairwise(ends):
        depth = model.depth.at((begin + end) // 2, steps, training.seed)
        found = measure(model, training, batches, sizes, budget, on_progress, depth)
        phases.append(((end - begin) / steps, found))
    return phases


def _supply(data: PlannedData) -> Callable[[StepSize], Batches]:
    """Batches of a size: of the text, or of Zipf-distributed random tokens."""

    def batches(size: StepSize) -> Batches:
        rows = size.micro_batches * size.rows
        if data.task is None:
            return ZipfBatches(data.vocabulary_size, rows, size.length)
        return data.task.training(rows, size.length)

    return batches


def _length(recipe: Recipe, data: PlannedData) -> int:
    """Tokens of a row; the length of a whole sequence if the task cannot be cut."""
    length = recipe.training.segment_length
    return length if data.task is None else data.task.training(1, length).at(0).inputs.shape[1]


def _cut(data: PlannedData) -> bool:
    """Whether rows can be made shorter."""
    return data.task is None or isinstance(data.task.training(1, 1), TrainingStream)


def _evaluated_tokens(recipe: Recipe, data: PlannedData) -> int | None:
    """Tokens predicted in all evaluations of a run."""
    training = recipe.training
    times = -(-training.steps // training.evaluate_every)  # and one after the last step
    if data.task is None:
        return None if training.evaluate_tokens is None else times * training.evaluate_tokens
    valid = data.task.split("valid")
    segments = valid.segments(training.batch_size, training.segment_length, training.evaluate_tokens)
    return times * sum(int((segment.targets != NO_TARGET).sum()) for segment in segments)


def _notes_beforehand(recipe: Recipe, data: PlannedData) -> tuple[str, ...]:
    notes = []
    if data.task is None:
        notes.append("steps were measured on Zipf-distributed random tokens")
        if recipe.training.evaluate_tokens is None:
            notes.append("the length of the validation text is unknown, so evaluations are not counted")
    if getattr(getattr(recipe.model, "depth", None), "schedule", None) is not None:
        notes.append("the depth changes over training: measured halfway through its warm-up and through the rest")
    return tuple(notes)


def _notes_on(found: Measurements, size: StepSize) -> tuple[str, ...]:
    if found.stopped is None:
        return ()
    reasons = {
        "time": "there was no time for a larger step (--seconds)",
        "memory": "a larger one would not have fit",
    }
    how = f"measured on {found.largest.size} and scaled to {size}, as {reasons[found.stopped]}"
    return (f"{how}; larger steps are often faster per token",)


def _gib(size: int | None) -> str:
    return "an unknown size" if size is None else f"{size / 2**30:.1f} GiB"
