"""How the processes of a run share the work on a model: PyTorch's DDP or FSDP2 around what a step differentiates.

Both wrap one module, the objective, whose forward pass is that of a micro-batch: embedding, solve and loss. So both act
before it and after its backward pass, and nowhere between: no collective sits inside a solve, whatever the number of
evaluations. For FSDP2 that makes the model one unit, gathered once per micro-batch. Smaller units would be gathered and
released at every evaluation, a different number of times in every process: the cell's weights are read once per solve,
when it is bound, and once more by every product of the backward solve.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.nn.parallel import DistributedDataParallel

from equilibria.cells import Cache, Memory
from equilibria.depths import Depth
from equilibria.distributed import World
from equilibria.models import Output, TokenModel
from equilibria.training.statistics import SolveRecord

Strategy = Literal["ddp", "fsdp2"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class MicroBatch:
    """Rows of a step that are computed at once: tokens and targets `(B, L)`, the memory before them, their weight in
    the objective of the step, and its depth; None for the model's own."""

    tokens: Tensor
    targets: Tensor
    memory: Memory | None
    weight: Tensor
    depth: Depth | None = None


@dataclass(frozen=True)
class MicroBatchResult:
    """The loss of a micro-batch, in nats per target, the memory after it, and its solve with the states that were
    reached; None for explicit depths."""

    loss: Tensor
    memory: Memory | None
    solve: SolveRecord | None
    reached: Tensor | None = None


class Objective(nn.Module):
    """What a step differentiates: a model's loss and penalty on a micro-batch, under autocast if asked for.

    States, residuals and everything a solver computes stay in float32; matrix products are taken in `precision`.
    """

    def __init__(self, model: TokenModel, precision: Precision) -> None:
        super().__init__()
        self.model = model
        self._lowered = precision == "bfloat16"

    def forward(self, batch: MicroBatch | None) -> tuple[Tensor, MicroBatchResult | None]:
        """The weighted objective, and the rest without a graph: a backward pass starts at one place, where FSDP2 sets
        its hook. Without a micro-batch, 0 as a function of all weights."""
        if batch is None:
            return torch.stack([(parameter * 0.0).sum() for parameter in self.parameters()]).sum(), None
        with torch.autocast(batch.tokens.device.type, torch.bfloat16, enabled=self._lowered):
            output: Output = self.model(batch.tokens, batch.targets, batch.memory, depth=batch.depth)
        assert output.loss is not None  # there are targets
        assert not isinstance(output.memory, Cache)  # which only an inference depth returns
        objective = output.loss if output.penalty is None else output.loss + output.penalty
        solve = reached = None
        if output.solution is not None:
            solve, reached = SolveRecord.of(output.solution), output.solution.value.detach()
        return objective * batch.weight, MicroBatchResult(output.loss.detach(), output.memory, solve, reached)


class Parallel(ABC):
    """An objective, parallelized over the processes.

    Attributes:
        forward: call it in place of the objective.
    """

    forward: nn.Module

    @abstractmethod
    def micro_batch(self, last: bool) -> AbstractContextManager[object]:
        """Around the passes of a micro-batch; the last one averages the gradients of all processes."""

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """While entered, this process holds all weights of the objective and its followers, and may use them alone."""
        yield

    def follow(self, module: nn.Module) -> None:
        """Shards an average of the model's weights as the model itself is sharded."""
        del module  # nothing is sharded


class Single(Parallel):
    """One process."""

    def __init__(self, objective: Objective) -> None:
        self.forward = objective

    def micro_batch(self, last: bool) -> AbstractContextManager[object]:
        return nullcontext()


class Replicated(Parallel):
    """Every process has all weights; gradients are averaged while the backward pass goes on."""

    def __init__(self, objective: Objective) -> None:
        # Buffers depend on weights alone, which are the same everywhere: there is nothing to send.
        self._ddp = DistributedDataParallel(objective, forward_sync_buffers=False, gradient_as_bucket_view=True)
        self.forward = self._ddp
        # DDP lays out its buckets anew after its first backward pass, and with them the order in which gradients are
        # added up. That is done here, or the first step of a run that goes on would round otherwise than it had.
        self._ddp(None)[0].backward()
        objective.zero_grad(set_to_none=True)

    def micro_batch(self, last: bool) -> AbstractContextManager[object]:
        return nullcontext() if last else self._ddp.no_sync()


class Sharded(Parallel):
    """Every process keeps a shard of each weight and of its optimizer state."""

    def __init__(self, objective: Objective, world: World) -> None:
        assert world.mesh is not None
        self._mesh = world.mesh
        self._units: list[FSDPModule] = []
        self.follow(objective)
        self.forward = objective

    def follow(self, module: nn.Module) -> None:
        self._units.append(fully_shard(module, mesh=self._mesh))

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        self._units[0].set_requires_gradient_sync(last)
        yield

    @contextmanager
    def gathered(self) -> Iterator[None]:
        for unit in self._units:
            unit.unshard()
        try:
            yield
        finally:
            for unit in self._units:
                unit.reshard()


def parallelize(objective: Objective, world: World, strategy: Strategy) -> Parallel:
    """Parallelizes an objective over all processes; its parameters may be other tensors afterwards."""
    if world.size == 1:
        return Single(objective)
    return Sharded(objective, world) if strategy == "fsdp2" else Replicated(objective)


def local(tensor: Tensor) -> Tensor:
    """The shard of a tensor that this process holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor, gathered if it is sharded; all processes must call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def by_rows(tensor: Tensor, world: World) -> Tensor:
    """The rows of this process as its shard of all rows: any number of processes can read back what is saved so."""
    return tensor if world.mesh is None else DTensor.from_local(tensor, world.mesh, [Shard(0)], run_check=False)


def empty_like(shape: torch.Size, dtype: torch.dtype, of: Any) -> Tensor:
    """An empty tensor of this shape, sharded like `of` if that has the same shape."""
    if isinstance(of, DTensor) and of.shape == shape:
        return torch.empty_like(of, dtype=dtype)
    return torch.empty(shape, dtype=dtype)
