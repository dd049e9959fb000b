"""The plan of a run: its sizes counted, its steps measured, and from both its memory and its time."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise

import torch

from equilibria.configuration import Recipe
from equilibria.configuration.building import build_model
from equilibria.data.batches import NO_TARGET, Batches, TrainingStream, ZipfBatches
from equilibria.data.tasks.base import Task
from equilibria.machine.costs import Limits, Measured, Shape, StepCost, ladder, measure
from equilibria.machine.memory import available_memory
from equilibria.machine.sizes import Sizes, sizes_of
from equilibria.models import LanguageModel
from equilibria.training.randomness import seed_everything

_SHORTEST = 16  # tokens of the shortest rows that are measured
_UNKNOWN = 2**31  # bytes that are taken to be free where nothing tells


@dataclass(frozen=True)
class Reading:
    """What a run reads, as far as it is known.

    Attributes:
        vocabulary_size: tokens in the vocabulary.
        task: the text or task; None where random tokens stand for a text.
    """

    vocabulary_size: int
    task: Task | None = None


@dataclass(frozen=True)
class Memory:
    """Bytes on a device: those that are there for as long as training takes, and those of a step at its recipe's size.

    Attributes:
        weights, gradients, optimizer, average: see `Sizes`.
        saved: for the backward pass of a batch; None where no step could be measured.
        temporaries: the solver's and others', at the worst moment of a step; likewise.
        segments: the segment memory of all batches of a step; likewise.
        free: on the device before anything is allocated; None where nothing tells.
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
        """All that is known, without what is free."""
        measured = (self.saved or 0) + (self.temporaries or 0) + (self.segments or 0)
        return self.weights + self.gradients + self.optimizer + self.average + measured


@dataclass(frozen=True)
class Plan:
    """What a run will cost. What nothing could be measured of is None.

    Attributes:
        sizes: of the model and of what training keeps.
        memory: on the device.
        shape: of the recipe's own steps.
        cost: of a step that was measured, after the warm-up of the depth; of a smaller one where the recipe's own would
            take too long or too much.
        step_seconds: of a step of the recipe, in the mean over the warm-up of the depth and what follows it.
        training_seconds: of all steps.
        evaluation_seconds: of all evaluations on validation text; None too where it is not known how long that is.
        passes: how often the training text is read.
        notes: what was not measured, or how it was.
    """

    sizes: Sizes
    memory: Memory
    shape: Shape
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
        return self.cost.tokens * self.shape.tokens / self.cost.shape.tokens / self.step_seconds

    @property
    def run_seconds(self) -> float | None:
        """Training and evaluations."""
        return None if self.training_seconds is None else self.training_seconds + (self.evaluation_seconds or 0.0)

    def to_json(self) -> dict[str, object]:
        """All figures."""
        own = ("step_seconds", "training_seconds", "evaluation_seconds", "passes")
        return {
            "parameters": {**self.sizes.parameters, "total": self.sizes.total},
            "memory": {**asdict(self.memory), "total": self.memory.total},
            "step": asdict(self.shape),
            "measured": None if self.cost is None else asdict(self.cost),
            **{name: getattr(self, name) for name in own},
            "tokens_per_second": self.tokens_per_second,
            "run_seconds": self.run_seconds,
            "notes": list(self.notes),
        }


def plan_run(
    recipe: Recipe, reading: Reading, device: torch.device, seconds: float, on_progress: Callable[[str], None]
) -> Plan:
    """Plans a run.

    Args:
        recipe: of the run.
        reading: what it reads.
        device: where it is trained.
        seconds: how long measuring may take, about.
        on_progress: called with a line for each thing that takes a while.

    Raises:
        UserError: the recipe's numbers do not go together, or the text is too short for them.
    """
    training = recipe.training
    sizes, free = sizes_of(recipe, reading.vocabulary_size), available_memory(device)
    shape = Shape(training.accumulation, training.batch_size, _length(recipe, reading))
    batches = _supply(reading)
    passes = _passes(training.steps, batches(shape))
    notes = _notes_beforehand(recipe, reading)
    left = (_UNKNOWN if free is None else free) - sizes.held
    # As much again as the weights: building a model and stepping take temporaries of their size.
    if left < sizes.weights:
        held = f"weights, gradients, optimizer and average take {_gib(sizes.held)} of {_gib(free)}"
        return Plan(sizes, _memory(sizes, free), shape, passes=passes, notes=(*notes, f"no step was measured: {held}"))
    shapes = ladder(shape, _SHORTEST if _cut(reading) else shape.length)
    phases = _measured_phases(recipe, reading, device, shapes, Limits(seconds, left), on_progress)
    cost, evaluated = phases[-1][1].largest, _evaluated_tokens(recipe, reading)
    step_seconds = sum(share * measured.seconds_of(shape) for share, measured in phases)
    return Plan(
        sizes=sizes,
        memory=max((_memory(sizes, free, measured, shape) for _, measured in phases), key=lambda memory: memory.total),
        shape=shape,
        cost=cost,
        step_seconds=step_seconds,
        training_seconds=step_seconds * training.steps,
        evaluation_seconds=None if evaluated is None else evaluated / cost.evaluated,
        passes=passes,
        notes=(*notes, *dict.fromkeys(note for _, measured in phases for note in _notes_on(measured, shape))),
    )


def _memory(sizes: Sizes, free: int | None, found: Measured | None = None, shape: Shape | None = None) -> Memory:
    """What is held, and what was measured of a step, scaled to a shape."""
    held = (sizes.weights, sizes.gradients, sizes.optimizer, sizes.average)
    if found is None or shape is None:
        return Memory(*held, None, None, None, free)
    last, tokens = found.largest, shape.rows * shape.length
    saved, peak = found.scaled(lambda cost: cost.saved, tokens), found.scaled(lambda cost: cost.peak, tokens)
    segments = round(last.memory * shape.slots * shape.rows / (last.shape.slots * last.shape.rows))
    return Memory(*held, saved, max(0, peak - saved - sizes.gradients), segments, free)


def _passes(steps: int, batches: Batches) -> float | None:
    return steps / len(batches) if isinstance(batches, TrainingStream) else None


def _measured_phases(
    recipe: Recipe,
    reading: Reading,
    device: torch.device,
    shapes: Sequence[Shape],
    limits: Limits,
    on_progress: Callable[[str], None],
) -> list[tuple[float, Measured]]:
    """The steps of the warm-up of the depth, if there is one, and those after it: their share of all, and what they
    cost, halfway through them."""
    training, batches = recipe.training, _supply(reading)
    seed_everything(training.seed)
    model = build_model(recipe, reading.vocabulary_size).to(device)
    steps = training.steps
    if not isinstance(model, LanguageModel):
        return [(1.0, measure(model, training, batches, shapes, limits, on_progress))]
    ends = sorted({0, min(model.depth.warmup(steps), steps), steps})
    limits = replace(limits, seconds=limits.seconds / (len(ends) - 1))
    phases = []
    for begin, end in pairwise(ends):
        depth = model.depth.at((begin + end) // 2, steps, training.seed)
        found = measure(model, training, batches, shapes, limits, on_progress, depth)
        phases.append(((end - begin) / steps, found))
    return phases


def _supply(reading: Reading) -> Callable[[Shape], Batches]:
    """Batches of a shape: of the text, or of random tokens with Zipf's distribution of words."""

    def batches(shape: Shape) -> Batches:
        rows = shape.slots * shape.rows
        if reading.task is None:
            return ZipfBatches(reading.vocabulary_size, rows, shape.length)
        return reading.task.training(rows, shape.length)

    return batches


def _length(recipe: Recipe, reading: Reading) -> int:
    """Tokens of a row: of a task whose sequences are whole, theirs."""
    length = recipe.training.segment_length
    return length if reading.task is None else reading.task.training(1, length).at(0).inputs.shape[1]


def _cut(reading: Reading) -> bool:
    """Whether rows can be made shorter."""
    return reading.task is None or isinstance(reading.task.training(1, 1), TrainingStream)


def _evaluated_tokens(recipe: Recipe, reading: Reading) -> int | None:
    """Tokens predicted in all evaluations of a run."""
    training = recipe.training
    times = -(-training.steps // training.evaluate_every)  # and one after the last step
    if reading.task is None:
        return None if training.evaluate_tokens is None else times * training.evaluate_tokens
    valid = reading.task.split("valid")
    segments = valid.segments(training.batch_size, training.segment_length, training.evaluate_tokens)
    return times * sum(int((segment.targets != NO_TARGET).sum()) for segment in segments)


def _notes_beforehand(recipe: Recipe, reading: Reading) -> tuple[str, ...]:
    notes = []
    if reading.task is None:
        notes.append("steps were measured on random Zipf-distributed tokens")
        if recipe.training.evaluate_tokens is None:
            notes.append("how long the validation text is, is not known: evaluations are not counted")
    if getattr(getattr(recipe.model, "depth", None), "schedule", None) is not None:
        notes.append("the depth changes over training: measured halfway through its warm-up and through the rest")
    return tuple(notes)


def _notes_on(found: Measured, shape: Shape) -> tuple[str, ...]:
    if found.stopped is None:
        return ()
    reasons = {
        "time": "there was no time for a larger step (--seconds)",
        "memory": "a larger one would not have fitted",
    }
    how = f"measured on {found.largest.shape} and scaled to {shape}, as {reasons[found.stopped]}"
    return (f"{how}; larger steps are often faster per token",)


def _gib(size: int | None) -> str:
    return "an unknown size" if size is None else f"{size / 2**30:.1f} GiB"
