"""The plan of a run: its parameters counted and its steps measured; from both, its memory and its time.

Parameters and what training holds throughout are counted on the meta device, which allocates nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from equilibria.configuration import Recipe, TrainingRecipe
from equilibria.configuration.building import build_model
from equilibria.data.batches import NO_TARGET, Batches, TrainingStream, ZipfBatches
from equilibria.data.tasks.base import Task
from equilibria.depths import Depth
from equilibria.machine.costs import Measurements, StepCost, StepSize, ladder, measure
from equilibria.machine.memory import available_memory
from equilibria.measuring.size import parameters_by_part
from equilibria.models import LanguageModel, TokenModel
from equilibria.optimization import adopted, parameter_groups
from equilibria.training.randomness import seed_everything

_SHORTEST = 16  # tokens of the shortest rows that are measured
_UNKNOWN = 2**31  # bytes assumed to be free if that is unknown
_STOPPED = {
    "time": "there was no time for a larger step (--seconds)",
    "memory": "a larger one would not have fit",
}


@dataclass(frozen=True)
class PlannedData:
    """The vocabulary and the text or task of a run; random tokens stand in for the text where `task` is None."""

    vocabulary_size: int
    task: Task | None = None

    def batches(self, size: StepSize) -> Batches:
        """Batches for steps of a size."""
        rows = size.micro_batches * size.rows
        if self.task is None:
            return ZipfBatches(self.vocabulary_size, rows, size.length)
        return self.task.training(rows, size.length)


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on a device: those held throughout training, and those of a step at the recipe's size.

    Attributes:
        weights: of parameters and buffers.
        gradients, optimizer, average: of the gradients, the optimizer's state and the averaged weights, if any.
        free: on the device before anything is allocated; None if unknown.
        saved: for the backward pass of a batch; None if no step could be measured, as for the next two.
        temporaries: of the solver and others, at the peak of a step.
        segments: the segment memory of all micro-batches of a step.
    """

    weights: int
    gradients: int
    optimizer: int
    average: int
    free: int | None
    saved: int | None = None
    temporaries: int | None = None
    segments: int | None = None

    @property
    def held(self) -> int:
        """Held from the first step to the last."""
        return self.weights + self.gradients + self.optimizer + self.average

    @property
    def total(self) -> int:
        """The sum of what is known."""
        return self.held + (self.saved or 0) + (self.temporaries or 0) + (self.segments or 0)


@dataclass(frozen=True)
class Plan:
    """What a run will cost. What could not be measured is None.

    Attributes:
        parameters: by part of the model, each once.
        memory: on the device.
        size: of the recipe's own steps.
        cost: of the largest step that was measured after the warm-up of the depth.
        step_seconds: of a step of the recipe, averaged over the warm-up of the depth and what follows it.
        training_seconds: of all steps.
        evaluation_seconds: of all evaluations; None, too, if the length of the validation text is unknown.
        passes: over the training text.
        notes: what was not measured, or how it was.
    """

    parameters: dict[str, int]
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
        """Tokens that training predicts per second."""
        if self.cost is None or self.step_seconds is None:
            return None
        return self.cost.tokens * self.size.tokens / self.cost.size.tokens / self.step_seconds

    @property
    def run_seconds(self) -> float | None:
        """Seconds of training and evaluations."""
        return None if self.training_seconds is None else self.training_seconds + (self.evaluation_seconds or 0.0)

    def to_json(self) -> dict[str, object]:
        seconds = ("step_seconds", "training_seconds", "evaluation_seconds", "run_seconds")
        return {
            "parameters": {**self.parameters, "total": sum(self.parameters.values())},
            "memory": {**asdict(self.memory), "total": self.memory.total},
            "step": asdict(self.size),
            "measured": None if self.cost is None else asdict(self.cost),
            **{name: getattr(self, name) for name in (*seconds, "passes", "tokens_per_second")},
            "notes": list(self.notes),
        }


def plan_run(
    recipe: Recipe, data: PlannedData, device: torch.device, seconds: float, on_progress: Callable[[str], None]
) -> Plan:
    """Plans a run on a device.

    Args:
        recipe, data: of the run.
        device: that it trains on.
        seconds: roughly how long measuring may take.
        on_progress: receives a line for each step size.

    Raises:
        UserError: the recipe's numbers do not fit together, or the text is too short for them.
    """
    training = recipe.training
    with torch.device("meta"):
        counted = build_model(recipe, data.vocabulary_size)
    parameters, memory = parameters_by_part(counted), _held(recipe, counted, available_memory(device))
    task = data.task
    length = training.segment_length
    if task is not None:  # a whole sequence where the task cannot be cut
        length = task.training(1, length).at(0).inputs.shape[1]
    size = StepSize(training.accumulation, training.batch_size, length)
    batches = data.batches(size)
    passes = training.steps / len(batches) if isinstance(batches, TrainingStream) else None
    notes = _notes_beforehand(recipe, data, counted)
    left = (_UNKNOWN if memory.free is None else memory.free) - memory.held
    # Building a model and taking steps need temporaries as large as the weights.
    if left < memory.weights:
        held = f"weights, gradients, optimizer and average take {_gib(memory.held)} of {_gib(memory.free)}"
        return Plan(parameters, memory, size, passes=passes, notes=(*notes, f"no step was measured: {held}"))
    cut = task is None or isinstance(task.training(1, 1), TrainingStream)
    sizes = ladder(size, _SHORTEST if cut else size.length)
    phases = _measured_phases(recipe, data, device, sizes, seconds, left, on_progress)
    cost, evaluated = phases[-1][1].largest, _evaluated_tokens(recipe, data)
    step_seconds = sum(share * measured.seconds_of(size) for share, measured in phases)
    return Plan(
        parameters=parameters,
        memory=max((_with_step(memory, measured, size) for _, measured in phases), key=lambda memory: memory.total),
        size=size,
        cost=cost,
        step_seconds=step_seconds,
        training_seconds=step_seconds * training.steps,
        evaluation_seconds=None if evaluated is None else evaluated / cost.evaluated,
        passes=passes,
        notes=(*notes, *dict.fromkeys(note for _, measured in phases for note in _notes_on(measured, size))),
    )


def _held(recipe: Recipe, model: TokenModel, free: int | None) -> MemoryPlan:
    weights = _bytes([*model.parameters(), *model.buffers()])
    return MemoryPlan(
        weights=weights,
        gradients=_bytes([parameter for parameter in model.parameters() if parameter.requires_grad]),
        optimizer=adopted(recipe.training.optimizer).state_bytes(parameter_groups(model)),
        average=0 if recipe.training.averaging is None else weights,
        free=free,
    )


def _bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _with_step(held: MemoryPlan, found: Measurements, size: StepSize) -> MemoryPlan:
    """Adds what was measured of a step, scaled to its full size."""
    last, tokens = found.largest, size.rows * size.length
    saved, peak = found.scaled(lambda cost: cost.saved, tokens), found.scaled(lambda cost: cost.peak, tokens)
    segments = round(last.memory * size.micro_batches * size.rows / (last.size.micro_batches * last.size.rows))
    return replace(held, saved=saved, temporaries=max(0, peak - saved - held.gradients), segments=segments)


def _measured_phases(
    recipe: Recipe,
    data: PlannedData,
    device: torch.device,
    sizes: Sequence[StepSize],
    seconds: float,
    free: int,
    on_progress: Callable[[str], None],
) -> list[tuple[float, Measurements]]:
    """The warm-up of the depth, if any, and what follows it: the share of each in all steps, and the cost of a step
    halfway through it."""
    training, batches, steps = recipe.training, data.batches, recipe.training.steps
    seed_everything(training.seed)
    model = build_model(recipe, data.vocabulary_size).to(device)
    spans, phases = _spans(model, steps), []
    for begin, end in spans:
        depth = _depth_at(model, (begin + end) // 2, training)
        found = measure(model, training, batches, sizes, seconds / len(spans), free, on_progress, depth)
        phases.append(((end - begin) / steps, found))
    return phases


def _spans(model: TokenModel, steps: int) -> list[tuple[int, int]]:
    """The steps of the depth's warm-up, if any, and those after it."""
    warmup = model.depth.warmup(steps) if isinstance(model, LanguageModel) else 0
    return [*pairwise(sorted({0, min(warmup, steps), steps}))]


def _depth_at(model: TokenModel, step: int, training: TrainingRecipe) -> Depth | None:
    return model.depth.at(step, training.steps, training.seed) if isinstance(model, LanguageModel) else None


def _evaluated_tokens(recipe: Recipe, data: PlannedData) -> int | None:
    """Tokens predicted in all evaluations of a run."""
    training = recipe.training
    times = -(-training.steps // training.evaluate_every)  # and one after the last step
    if data.task is None:
        return None if training.evaluate_tokens is None else times * training.evaluate_tokens
    valid = data.task.split("valid")
    segments = valid.segments(training.batch_size, training.segment_length, training.evaluate_tokens)
    return times * sum(int((segment.targets != NO_TARGET).sum()) for segment in segments)


def _notes_beforehand(recipe: Recipe, data: PlannedData, model: TokenModel) -> tuple[str, ...]:
    notes, steps = [], recipe.training.steps
    if data.task is None:
        notes.append("steps were measured on Zipf-distributed random tokens")
        if recipe.training.evaluate_tokens is None:
            notes.append("the length of the validation text is unknown, so evaluations are not counted")
    spans = _spans(model, steps)
    some = {step for begin, end in spans for step in (begin, (begin + end) // 2, end - 1)}
    first, *others = (_depth_at(model, step, recipe.training) for step in sorted(some))
    if any(depth != first for depth in others):
        measured = " and ".join(str((begin + end) // 2 + 1) for begin, end in spans)
        notes.append(f"the depth changes over training: measured as it is in step {measured} of {steps}")
    return tuple(notes)


def _notes_on(found: Measurements, size: StepSize) -> tuple[str, ...]:
    if found.stopped is None:
        return ()
    how = f"measured on {found.largest.size} and scaled to {size}, as {_STOPPED[found.stopped]}"
    return (f"{how}; larger steps are often faster per token",)


def _gib(size: int | None) -> str:
    return "an unknown size" if size is None else f"{size / 2**30:.1f} GiB"
