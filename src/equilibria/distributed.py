"""The processes of a run: started by torchrun, joined by PyTorch Distributed, and the messages between them.

The strategy's own collectives move tensors of the model (see `training.parallel`). Here are a few numbers per step and
small objects, between CPUs: how many targets there are, whether a signal came, what failed. None is sent inside a
solve, where processes differ in the number of evaluations.
"""

import hashlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from equilibria.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them.

    Attributes:
        rank: of this process, from 0; the one of rank 0 writes the run folder and talks to the user.
        size: how many there are.
        local_rank: of this process among those of its machine.
        mesh: all of them, in one dimension; None for a process on its own.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    mesh: DeviceMesh | None = None

    @property
    def main(self) -> bool:
        """Whether this is the process of rank 0."""
        return self.rank == 0

    def sum(self, *numbers: float) -> list[float]:
        """The numbers of all processes, added up; whole ones exactly up to 2^53."""
        return self._reduced(numbers, dist.ReduceOp.SUM)

    def highest(self, *numbers: float) -> list[float]:
        """The maximum over all processes of each number."""
        return self._reduced(numbers, dist.ReduceOp.MAX)

    def add(self, tensor: Tensor) -> Tensor:
        """Sums a tensor over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in the order of their ranks."""
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value)
        return values  # pyright: ignore[reportReturnType]

    def broadcast(self, value: T) -> T:
        """The value of rank 0; the other processes' own are ignored."""
        return self.gather(value)[0]

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The first process of each machine runs the body before the others, which find what it has cached."""
        if self.local_rank:
            self.broadcast(None)
        yield
        if not self.local_rank:
            self.broadcast(None)

    def _reduced(self, numbers: tuple[float, ...], operation: dist.ReduceOp.RedOpType) -> list[float]:
        if self.size == 1:
            return list(numbers)
        tensor = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(tensor, operation)
        return tensor.tolist()


ALONE = World()
"""One process that was not started by torchrun."""


@contextmanager
def joined(device: Literal["cpu", "cuda"]) -> Iterator[World]:
    """The processes that torchrun has started, joined while entered; this one alone without torchrun.

    Args:
        device: `"cpu"`, joined by gloo, or `"cuda"`, by nccl, each process on the device of its local rank.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "cuda":
        torch.cuda.set_device(local_rank)
    # Both backends on an accelerator: numbers that the host needs travel without waiting for the device.
    dist.init_process_group("gloo" if device == "cpu" else "cpu:gloo,cuda:nccl")
    try:
        yield World(dist.get_rank(), size, local_rank, init_device_mesh(device, (size,)))
    finally:
        dist.destroy_process_group()


def training_device(device: Literal["auto", "cpu", "cuda"]) -> Literal["cpu", "cuda"]:
    """The kind of device to train on: what is asked for, or CUDA where there is a device for each process.

    Raises:
        UserError: CUDA is asked for, and there are fewer devices than processes on this machine.
    """
    needed, found = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if device == "cuda" and found < needed:
        raise UserError(f'the device is "cuda", and there are {found} CUDA devices for {needed} processes; use "cpu"')
    return "cpu" if device == "cpu" or found < needed else "cuda"


def own_rows(count: int, world: World) -> slice:
    """The rows of a batch that this process takes.

    Raises:
        UserError: they cannot be shared out evenly.
    """
    if count % world.size:
        raise UserError(
            f"training.batch_size = {count} cannot be shared by {world.size} processes; "
            f"give a multiple of {world.size}, or start another number of processes"
        )
    each = count // world.size
    return slice(world.rank * each, (world.rank + 1) * each)


def seed_process(seed: int, world: World, step: int = 0) -> None:
    """Seeds what training draws (dropout, probes), differently in every process.

    A process of its own has the recipe's seed at its start. A run that goes on with another number of processes than
    it had draws anew from its seed and its step.
    """
    if world.main and not step:
        torch.manual_seed(seed)
        return
    digest = hashlib.sha256(f"{seed} {step} {world.rank}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:7], "big"))


def launch() -> str | None:
    """What this start of processes by torchrun is called, the same after each of its restarts; None without one."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    name = os.environ["TORCHELASTIC_RUN_ID"]
    # Without a name given, torchrun's own process stands for it: it lives as long as it restarts its workers.
    return f"{socket.gethostname()} {os.getppid()}" if name == "none" else name


def restarted() -> bool:
    """Whether torchrun has started these processes again after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
