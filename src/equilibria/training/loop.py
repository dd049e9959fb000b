"""The core of training: one optimizer step after another, and the state that makes the next one what it is.

It knows nothing of run folders, displays and signals, so that a benchmark can step two of them in turn.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from equilibria.cells import Memory
from equilibria.configuration.training import TrainingRecipe
from equilibria.data.batching import NO_TARGET, Batches
from equilibria.depths import DepthSchedule
from equilibria.errors import UserError
from equilibria.inference.weights import distinct_state
from equilibria.models import LanguageModel, TokenModel
from equilibria.training.averaging import WeightAverage
from equilibria.training.checkpoint import Checkpoint
from equilibria.training.optimizers import ScheduledOptimizers
from equilibria.training.randomness import random_state, restore_random_state
from equilibria.training.statistics import StepStatistics


class TrainingLoop:
    """Trains a model on batches of segments.

    A step divides its batch, of `accumulation * batch_size` rows, into `accumulation` slots and averages their
    gradients: the same step as one of all rows taken at once. Every slot has its own segment memory.

    Args:
        model: on the device it shall be trained on.
        recipe: sizes, rates and limits.
        batches: what to train on; a step takes the segment of its index.
        depths: the model's depth in each step, asked before it is taken; the model's own throughout when None.

    Attributes:
        done: optimizer steps finished; also the index of the next segment.
        tokens: predicted in the steps of this process.
        statistics: figures of the steps since its last reset.
    """

    def __init__(
        self, model: TokenModel, recipe: TrainingRecipe, batches: Batches, depths: DepthSchedule | None = None
    ) -> None:
        self.model = model
        self.recipe = recipe
        self.device = next(model.parameters()).device
        self.done = 0
        self.tokens = 0
        self.statistics = StepStatistics(self.device)
        self._batches = batches
        self._memories: list[Memory | None] = [None] * recipe.accumulation
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._depths = depths
        self._optimizers = ScheduledOptimizers(model, recipe)
        self._average = WeightAverage(model, recipe)

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return self._optimizers.learning_rate

    @property
    def evaluated(self) -> TokenModel:
        """The model to evaluate and to keep: the one in training, or the average of its weights so far."""
        return self._average.evaluated

    def validated(self, loss: float) -> None:
        """Takes note of a validation loss of `evaluated`, by which an average may start."""
        self._average.validated(loss)

    def step(self) -> Tensor:
        """Takes one optimizer step.

        Returns:
            The loss before the step, in nats per token, on the model's device; reading it waits for that.
        """
        if self._depths is not None:
            assert isinstance(self.model, LanguageModel)  # other models have no depth
            self.model.depth = self._depths.at(self.done, self.recipe.steps)
        segment = self._batches.at(self.done)
        if segment.starts:
            self._memories = [None] * self.recipe.accumulation
        self.model.train()
        total = max(1, int((segment.targets != NO_TARGET).sum()))
        slots = zip(*(part.chunk(self.recipe.accumulation) for part in (segment.inputs, segment.targets)), strict=True)
        loss = torch.zeros((), device=self.device)
        for slot, (inputs, targets) in enumerate(slots):
            share = int((targets != NO_TARGET).sum()) / total
            if share:
                loss += self._backward(slot, inputs, targets, share)
        gradient_norm = nn.utils.clip_grad_norm_(self._parameters, self.recipe.clip)
        self._optimizers.step()
        self.done += 1
        self.tokens += total
        self._average.update(self.done)
        self.statistics.add_step(loss, gradient_norm, total)
        return loss

    def _backward(self, slot: int, inputs: Tensor, targets: Tensor, share: float) -> Tensor:
        """Adds the gradient of a slot, weighted by its share of the targets; returns its weighted loss."""
        output = self.model(inputs.to(self.device), targets.to(self.device), self._memories[slot])
        self._memories[slot] = output.memory
        assert output.loss is not None  # there are targets
        objective = output.loss if output.penalty is None else output.loss + output.penalty
        (objective * share).backward()
        if output.solution is not None:
            self.statistics.add_solve(output.solution)
        return output.loss.detach() * share

    def checkpoint(self) -> Checkpoint:
        """Everything that later steps depend on. Tensors are not copied: save before the next step."""
        trainer = {f"random.{name}": tensor for name, tensor in random_state(self.device).items()}
        trainer |= {f"statistics.{name}": tensor for name, tensor in self.statistics.tensors().items()}
        trainer |= {f"optimizer.{name}": tensor for name, tensor in self._optimizers.tensors().items()}
        trainer |= {f"average.{name}": tensor for name, tensor in self._average.tensors().items()}
        for slot, memory in enumerate(self._memories):
            parts = [] if memory is None else memory.flatten()
            trainer |= {f"memory.{slot}.{number:04d}": part for number, part in enumerate(parts)}
        return Checkpoint(distinct_state(self.evaluated), trainer, {"step": self.done})

    def restore(self, checkpoint: Checkpoint, path: Path) -> None:
        """Goes on from a checkpoint: the steps that follow are those that would have followed it.

        Args:
            checkpoint: what `checkpoint` returned, read back.
            path: its folder, for messages.

        Raises:
            UserError: it belongs to another model or is incomplete.
        """
        step = checkpoint.scalars.get("step")
        if not isinstance(step, int):
            raise UserError(f"{path / 'trainer.json'} has no step; it is damaged, restore it")
        parts = _by_prefix(checkpoint.trainer)
        try:
            self._average.restore(checkpoint.model, parts.get("average", {}), path)
            self._optimizers.restore(parts.get("optimizer", {}), step)
            self.statistics.restore(parts["statistics"])
            self._memories = self._restored_memories(parts.get("memory", {}))
            restore_random_state(parts["random"], self.device)
        except (KeyError, RuntimeError, ValueError) as problem:
            raise UserError(
                f"{path / 'trainer.safetensors'} does not belong to this model or is incomplete "
                f"({type(problem).__name__}: {problem}); use the recipe it was trained with"
            ) from problem
        self.done = step

    def _restored_memories(self, tensors: Mapping[str, Tensor]) -> list[Memory | None]:
        slots: list[list[Tensor]] = [[] for _ in range(self.recipe.accumulation)]
        for name in sorted(tensors):
            slots[int(name.partition(".")[0])].append(tensors[name].to(self.device))
        return [Memory.unflatten(parts) if parts else None for parts in slots]


def _by_prefix(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """`{"a.b": t}` as `{"a": {"b": t}}`."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        prefix, _, rest = name.partition(".")
        parts.setdefault(prefix, {})[rest] = tensor
    return parts
