"""A whole recipe: its sections, made of the very objects that they configure.

A key and its flag have the same name: `tol` below `[model.depth.solver]` is `--model.depth.solver.tol`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Literal

from torch import optim

from equilibria.data import EmbeddedText, Source, Task
from equilibria.devices import Device
from equilibria.errors import Problems
from equilibria.models import LanguageModelRecipe, ModelRecipe
from equilibria.optimization import AdamW, Averaging, Cosine, Optimizer, Rates, Schedule, adopted
from equilibria.ranges import above, at_most, whole

LONGEST_NAME = 240
"""Bytes of a run's name: file systems take 255, and a file beside it may need an ending."""


@dataclass(frozen=True, kw_only=True)
class RunRecipe:
    """Where the results go.

    Args:
        name: of the run: of a folder that does not exist yet, unless with --resume.
        directory: folder of runs.
    """

    name: str
    directory: Path = Path("runs")

    def __post_init__(self) -> None:
        if not self.name.isprintable():
            raise ValueError(f"name = {self.name!r}: expected a name that can be printed")
        if self.name in ("", ".", "..") or Path(self.name).name != self.name:
            raise ValueError(f'name = "{self.name}": expected a name without slashes; run.directory says where it is')
        if (size := len(self.name.encode())) > LONGEST_NAME:
            raise ValueError(f'name = "{self.name[:20]}…" has {size} bytes: expected at most {LONGEST_NAME}')

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.directory / self.name


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """Batches, optimizer and intervals; an interval is counted in optimizer steps.

    Args:
        steps: optimizer steps in all.
        batch_size: rows of text in a batch.
        segment_length: tokens of each row per step.
        accumulation: batches whose gradients are averaged in one optimizer step.
        learning_rate: peak learning rate.
        rates: those of parts of the model, as multiples of it.
        optimizer: what takes the steps.
        schedule: how the learning rate rises and falls.
        averaging: evaluate and keep an average of the weights over the steps; none for the weights themselves.
        clip: largest norm of the whole gradient.
        precision: of matrix products in training; weights, states, residuals and solvers stay in float32.
        compile: compile the cell with torch.compile, for which PyTorch needs a C++ compiler.
        skipped_steps: steps in a row with an infinite or NaN loss or gradient that are skipped before the run ends.
        evaluate_every: interval between evaluations on validation text.
        evaluate_tokens: validation tokens in these evaluations, at most; none for all.
        checkpoint_every: interval between checkpoints.
        checkpoints_kept: how many of the last checkpoints are kept, and the best one beside them.
        log_every: interval between lines of metrics.
        tensorboard: also write the metrics for TensorBoard (needs its package) into the run's folder tensorboard.
        seed: of weights and dropout.
        device: where to train; auto takes CUDA if there is a device for every process, else the CPU.
        initial_weights: a run, an import or a .safetensors file to start from; none for random weights.
        threads: CPU threads; none for what PyTorch chooses.
    """

    steps: int = 2000
    batch_size: int = 16
    segment_length: int = 128
    accumulation: int = 1
    learning_rate: float = 1e-3
    rates: Rates = field(default_factory=Rates)
    optimizer: Optimizer | partial[optim.Optimizer] = field(default_factory=AdamW)
    schedule: Schedule = field(default_factory=Cosine)
    averaging: Averaging | None = None
    clip: float = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    skipped_steps: int = 10
    evaluate_every: int = 200
    evaluate_tokens: int | None = None
    checkpoint_every: int = 200
    checkpoints_kept: int = 2
    log_every: int = 10
    tensorboard: bool = False
    seed: int = 0
    device: Device = "auto"
    initial_weights: Path | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        from_0 = {"skipped_steps": self.skipped_steps, "seed": self.seed}
        counts = {option.name for option in fields(self) if option.type in ("int", "int | None")} - from_0.keys()
        whole(0, **from_0)
        whole(1, **{name: getattr(self, name) for name in sorted(counts)})
        at_most(2**63 - 1, seed=self.seed)
        at_most(2**31 - 1, batch_size=self.batch_size, accumulation=self.accumulation)
        at_most(2**31 - 1, segment_length=self.segment_length)
        at_most(1024, threads=self.threads)
        adopted(self.optimizer)
        above(0, learning_rate=self.learning_rate, clip=self.clip)

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0, where no part of the model has a rate of its own."""
        return self.learning_rate * self.schedule.factor(step, self.steps)


@dataclass(frozen=True, kw_only=True)
class DistributedRecipe:
    """Several processes, started by torchrun. They share a recipe's batches, so a run is the same for any number.

    Args:
        strategy: each process holds the whole model, or its share of the weights and of the optimizer's state.
    """

    strategy: Literal["ddp", "fsdp2"] = "ddp"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run."""

    run: RunRecipe
    data: Source | Task = field(default_factory=EmbeddedText)
    model: ModelRecipe = field(default_factory=LanguageModelRecipe)
    training: TrainingRecipe = field(default_factory=TrainingRecipe)
    distributed: DistributedRecipe = field(default_factory=DistributedRecipe)

    def __post_init__(self) -> None:
        if self.training.compile and (obstacle := self.model.no_compilation()):
            raise Problems((("training", "compile"), obstacle))
        if self.model.reads_source != (isinstance(self.data, Task) and self.data.has_source):
            raise ValueError(
                "a task with a source and a target, and a model that reads one and writes the other, go together: "
                "give both or none (data.source, model.kind)"
            )

    @property
    def context(self) -> int:
        """Tokens of a row that the model sees at once: a segment of a text, or a task's whole sequence."""
        length = self.data.length if isinstance(self.data, Task) else None
        return self.training.segment_length if length is None else length
