"""The core of training: one optimizer step after another, and the state that makes the next one what it is.

It knows nothing of run folders, displays and signals, so that a benchmark can step two of them in turn.
"""

import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._functorch import config as autograd_options

from equilibria.cells import Memory
from equilibria.configuration.recipe import TrainingRecipe
from equilibria.data.batches import NO_TARGET, Batches
from equilibria.depths import Depth
from equilibria.distributed import ALONE, World, own_rows, seed_process
from equilibria.errors import UserError
from equilibria.models import LanguageModel, TokenModel
from equilibria.optimization import ScheduledOptimizers
from equilibria.runs.checkpoints import Checkpoint
from equilibria.runs.weights import distinct_state, fill
from equilibria.training.averaging import WeightAverage
from equilibria.training.parallel import (
    MicroBatch,
    MicroBatchResult,
    Objective,
    Strategy,
    by_rows,
    empty_like,
    full_tensor,
    local,
    parallelize,
)
from equilibria.training.randomness import random_state, restore_random_state
from equilibria.training.statistics import SolveRecord, StepStatistics


class TrainingLoop:
    """Trains a model on batches of segments.

    A step divides its batch, of `accumulation * batch_size` rows, into `accumulation` micro-batches and averages
    their gradients: the same step as one of all rows at once. Every micro-batch has its own segment memory. A process
    takes its share of the rows of each, so any number of processes takes the same steps.

    A step whose loss or gradient is infinite or NaN is skipped: weights, optimizer, average and segment memory stay as
    they were, and the next step takes the next segment.

    Args:
        model: on the device to train on; the same in all processes.
        recipe: sizes, rates and limits.
        batches: what to train on; a step takes the segment of its index.
        depth: says the depth of each step; the model's own when None.
        world: the processes that train together.
        strategy: how they share the model.

    Attributes:
        depth: of the last step, where it was not the model's own; else None.
        done: optimizer steps finished, skipped ones included; also the index of the next segment.
        tokens: predicted, by all processes.
        skipped: steps that were skipped, in all.
        skipped_in_a_row: of those, the last ones.
        statistics: figures of the steps since its last reset.

    Raises:
        UserError: the rows cannot be shared by so many processes.
    """

    def __init__(
        self,
        model: TokenModel,
        recipe: TrainingRecipe,
        batches: Batches,
        depth: Depth | None = None,
        world: World = ALONE,
        strategy: Strategy = "ddp",
    ) -> None:
        self.model = model
        self.recipe = recipe
        self.device = next(model.parameters()).device
        self.done = self.tokens = self.skipped = self.skipped_in_a_row = 0
        self.statistics = StepStatistics(self.device, world)
        self._world = world
        self._batches = batches
        self._memories: list[Memory | None] = [None] * recipe.accumulation
        self._rows = _own_rows(recipe, world)
        self._own_depth = model.depth if isinstance(model, LanguageModel) else None  # other models have none
        self._depths = self._own_depth if depth is None else depth
        self.depth: Depth | None = None
        self._average = WeightAverage(model, recipe.averaging)  # copies the model while it is whole
        if recipe.compile and isinstance(model, LanguageModel):
            _compile_cell(model)
        self._parallel = parallelize(Objective(model, recipe.precision), world, strategy)
        if self._average.module is not None:
            self._parallel.follow(self._average.module)
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._optimizers = ScheduledOptimizers(
            model, recipe.optimizer, recipe.schedule, recipe.steps, recipe.learning_rate, recipe.rates
        )

    def gathered(self) -> AbstractContextManager[None]:
        """While entered, `evaluated` has all its weights in this process, which may use it without the others."""
        return self._parallel.gathered()

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return self._optimizers.learning_rate

    @property
    def evaluated(self) -> TokenModel:
        """The model to evaluate and to keep: the one in training, or the average of its weights so far."""
        return self._average.evaluated

    @property
    def finite(self) -> bool:
        """Whether all weights are finite numbers; all processes must ask."""
        broken = sum((~local(parameter.detach()).isfinite()).any() for parameter in self._parameters)
        return self._world.highest(float(broken))[0] == 0.0

    def validated(self, loss: float) -> None:
        """Takes note of a validation loss of `evaluated`, by which an average may start."""
        self._average.validated(loss)

    def step(self) -> Tensor:
        """Takes one optimizer step, with all processes.

        Returns:
            The loss before the step, in nats per token, on the model's device; reading it waits for that.
        """
        if self._depths is not None:
            depth = self._depths.at(self.done, self.recipe.steps, self.recipe.seed)
            self.depth = None if depth is self._own_depth else depth
        segment = self._batches.at(self.done, self._rows)
        if segment.starts:
            self._memories = [None] * self.recipe.accumulation
        before = list(self._memories)
        self.model.train()
        total = max(1, int(self._world.sum(int((segment.targets != NO_TARGET).sum()))[0]))
        slots = zip(*(part.chunk(self.recipe.accumulation) for part in (segment.inputs, segment.targets)), strict=True)
        loss, solves = torch.zeros((), device=self.device), []
        for slot, (inputs, targets) in enumerate(slots):
            loss += self._backward(slot, inputs, targets, total, solves)
        self._world.add(loss)
        gradient_norm = full_tensor(nn.utils.clip_grad_norm_(self._parameters, self.recipe.clip))
        self.done += 1
        self.tokens += total
        if bool(torch.isfinite(loss + gradient_norm)):
            self._optimizers.step()
            self._average.update(self.done)
            self.skipped_in_a_row = 0
            self.statistics.add_solves(solves)
            self.statistics.add_step(loss, gradient_norm, total)
        else:
            self._optimizers.skip(self.done)
            self._memories = before
            self.statistics.add_skipped()
            self.skipped += 1
            self.skipped_in_a_row += 1
        return loss

    def _backward(self, slot: int, inputs: Tensor, targets: Tensor, total: int, solves: list[SolveRecord]) -> Tensor:
        """Adds the gradient of a micro-batch, weighted by its share of all targets; returns its weighted loss, that of
        its last round (`Depth.rounds`)."""
        count = int((targets != NO_TARGET).sum())
        if not count:  # a pass through all weights all the same, which the other processes wait for
            targets = torch.zeros_like(targets)
        weight = torch.tensor(count / total, device=self.device)
        depth = self._own_depth if self.depth is None else self.depth
        rounds = 1 if depth is None else depth.rounds
        # Gradients of the processes are averaged, and are to be added up.
        share = weight * self._world.size / rounds
        own = MicroBatch(inputs.to(self.device), targets.to(self.device), self._memories[slot], share, self.depth)
        last_slot = slot == self.recipe.accumulation - 1
        figures = self._round(own, last_slot and rounds == 1, solves)
        for number in range(2, rounds + 1):
            begun = replace(own, depth=_continued(depth, figures))
            figures = self._round(begun, last_slot and number == rounds, solves)
        self._memories[slot] = figures.memory
        return figures.loss * weight

    def _round(self, batch: MicroBatch, last: bool, solves: list[SolveRecord]) -> MicroBatchResult:
        """The forward and the backward pass of a micro-batch at one depth."""
        with self._parallel.micro_batch(last):
            objective, figures = self._parallel.forward(batch)
            objective.backward()
        if figures.solve is not None:
            solves.append(figures.solve)
        return figures

    def checkpoint(self) -> Checkpoint:
        """Everything that later steps depend on; all processes must ask.

        Tensors are not copied: save before the next step.
        """
        parts: dict[str, Mapping[str, Tensor]] = {
            f"random.{self._world.rank}": random_state(self.device),
            "weights": distinct_state(self.model),
            "statistics": self.statistics.tensors(),
            "optimizer": self._optimizers.tensors(),
            "average": self._average.tensors(),
        }
        for slot, memory in enumerate(self._memories):
            tensors = [] if memory is None else memory.flatten()
            parts[f"memory.{slot}"] = {f"{n:04d}": by_rows(tensor, self._world) for n, tensor in enumerate(tensors)}
        trainer = {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}
        scalars = {
            "step": self.done,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "processes": self._world.size,
        }
        return Checkpoint(trainer, scalars)

    def weights(self) -> dict[str, Tensor]:
        """Those of `evaluated`, whole, in the process of rank 0; all must ask."""
        weights = {}
        for name, tensor in distinct_state(self.evaluated).items():
            tensor = full_tensor(tensor.detach())
            if self._world.main:
                weights[name] = tensor.cpu()
        return weights

    def layout(self, name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor | None:
        """Where to read a tensor of a checkpoint into; None for the random state of another process."""
        kind, _, rest = name.partition(".")
        if kind == "random" and not rest.startswith(f"{self._world.rank}."):
            return None
        if kind == "memory" and self._world.mesh is not None:
            own = torch.empty((shape[0] // self._world.size, *shape[1:]), dtype=dtype, device=self.device)
            return by_rows(own, self._world)
        if kind in ("weights", "optimizer", "average"):
            names = dict(self.model.named_parameters())
            like = names.get(rest) if kind == "weights" else names.get(rest.partition(".")[2])
            return empty_like(shape, dtype, like)
        return torch.empty(shape, dtype=dtype)

    def restore(self, checkpoint: Checkpoint, path: Path) -> None:
        """Resumes from what `checkpoint` returned, read from `path` into tensors of this loop's `layout`.

        Raises:
            UserError: it belongs to another model or is incomplete.
        """
        scalars = {name: checkpoint.scalars.get(name) for name in ("step", "skipped", "skipped_in_a_row", "processes")}
        numbers = {name: value for name, value in scalars.items() if isinstance(value, int)}
        if len(numbers) != len(scalars):
            raise UserError(f"{path / 'trainer.json'} lacks {', '.join(scalars.keys() - numbers)}; restore it")
        parts = _by_prefix(checkpoint.trainer)
        fill(distinct_state(self.model), parts.get("weights", {}), path / "trainer")
        try:
            self._average.restore(parts.get("average", {}), path / "trainer")
            self._optimizers.restore(parts.get("optimizer", {}), numbers["step"])
            self.statistics.restore(parts["statistics"])
            self._memories = self._restored_memories(parts.get("memory", {}))
            if numbers["processes"] == self._world.size:
                restore_random_state(_by_prefix(parts["random"])[str(self._world.rank)], self.device)
            else:
                seed_process(self.recipe.seed, self._world, numbers["step"])
        except (KeyError, RuntimeError, ValueError) as problem:
            raise UserError(
                f"{path / 'trainer'} does not belong to this model or is incomplete "
                f"({type(problem).__name__}: {problem}); use the recipe it was trained with"
            ) from problem
        self.done, self.skipped = numbers["step"], numbers["skipped"]
        self.skipped_in_a_row = numbers["skipped_in_a_row"]

    def _restored_memories(self, tensors: Mapping[str, Tensor]) -> list[Memory | None]:
        slots: list[list[Tensor]] = [[] for _ in range(self.recipe.accumulation)]
        for name in sorted(tensors):
            slots[int(name.partition(".")[0])].append(local(tensors[name]).to(self.device))
        return [Memory.unflatten(parts) if parts else None for parts in slots]


def _compile_cell(model: LanguageModel) -> None:
    """Compiles the cell, the one part that is applied repeatedly, at its first application."""
    from torch._inductor import config as compiler_options  # takes a second, for compiled cells alone

    device = next(model.parameters()).device
    # Those that PyTorch tries, CXX or the platform's own; None stands for a download on request.
    compilers = [name for name in compiler_options.cpp.cxx if name]
    if device.type == "cpu" and not any(shutil.which(compiler) for compiler in compilers):
        raise UserError(
            f"training.compile needs a C++ compiler, and there is none of {', '.join(compilers)}; install one"
        )
    # A solve of the adjoint goes back through one evaluation many times: what it saved may not be used up.
    autograd_options.donated_buffer = False
    model.cell.compile()


def _continued(depth: Depth | None, figures: MicroBatchResult) -> Depth:
    """The depth of the round after one."""
    if depth is None or figures.reached is None:
        raise ValueError(
            f"each round of {type(depth).__name__} begins at the solution of the one before, and it returned none; "
            f"give Reached(solution=...), or leave rounds at 1"
        )
    return depth.continued(figures.reached)


def _own_rows(recipe: TrainingRecipe, world: World) -> list[int]:
    own = range(recipe.batch_size)[own_rows(recipe.batch_size, world)]
    return [slot * recipe.batch_size + row for slot in range(recipe.accumulation) for row in own]


def _by_prefix(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """`{"a.b": t}` as `{"a": {"b": t}}`."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        prefix, _, rest = name.partition(".")
        parts.setdefault(prefix, {})[rest] = tensor
    return parts
