"""The processes of a run: started by torchrun, joined by PyTorch Distributed, and the messages between them.

The strategy's own collectives move model tensors (`training.parallel`). Messages here are a few numbers per step and
small objects, between CPUs. None is sent inside a solve, where processes differ in the number of evaluations.
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

from equilibria.devices import Device
from equilibria.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them.

    Attributes:
        rank: from 0; the process of rank 0 writes the run folder and talks to the user.
        size: the number of processes.
        local_rank: among the processes of this machine.
        mesh: of all of them, in one dimension; None for a single process.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    mesh: DeviceMesh | None = None

    @property
    def main(self) -> bool:
        """Whether this is rank 0."""
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
        """The values of all processes, by rank."""
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value)
        return values  # pyright: ignore[reportReturnType]

    def broadcast(self, value: T) -> T:
        """The value of rank 0, for all processes."""
        return self.gather(value)[0]

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The first process of each machine runs the body before the others, which find its caches."""
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
"""A process that torchrun did not start."""


@contextmanager
def joined(device: str) -> Iterator[World]:
    """Joins the processes that torchrun started while entered: with gloo on the CPU, with nccl on CUDA, where each
    process takes the device of its local rank. `ALONE` without torchrun."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "cuda":
        torch.cuda.set_device(local_rank)
    # Both backends on CUDA: numbers that the host needs travel without waiting for the device.
    dist.init_process_group("gloo" if device == "cpu" else "cpu:gloo,cuda:nccl")
    try:
        yield World(dist.get_rank(), size, local_rank, init_device_mesh(device, (size,)))
    finally:
        dist.destroy_process_group()


def training_device(device: Device) -> Literal["cpu", "cuda", "mps"]:
    """The kind of device to train on; `"auto"` is CUDA if there is a device for each process.

    `"mps"` is taken by name alone: it has no float64, so that the small systems of solvers are solved in float32.

    Raises:
        UserError: CUDA or MPS is wanted, and this machine has fewer such devices than processes.
    """
    needed = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device == "cpu":
        return device
    kind = "cuda" if device == "auto" else device
    found = torch.cuda.device_count() if kind == "cuda" else int(torch.backends.mps.is_available())
    if found >= needed:
        return kind
    if device == "auto":
        return "cpu"
    devices, processes = _several(found, f"{kind.upper()} device"), _several(needed, "process", "es")
    raise UserError(f'the device is to be "{kind}", and there are {devices} for {processes}; use "cpu" or "auto"')


def _several(count: int, what: str, ending: str = "s") -> str:
    return f"{count or 'no'} {what}{'' if count == 1 else ending}"


def own_rows(count: int, world: World) -> slice:
    """This process's rows of a batch; a UserError if they cannot be divided evenly."""
    if count % world.size:
        raise UserError(
            f"training.batch_size = {count} cannot be divided among {world.size} processes; "
            f"give a multiple of {world.size}, or start another number of processes"
        )
    each = count // world.size
    return slice(world.rank * each, (world.rank + 1) * each)


def seed_process(seed: int, world: World, step: int = 0) -> None:
    """Seeds what training draws (dropout, probes), differently in every process; rank 0 starts with the recipe's seed.

    A run that resumes with another number of processes draws anew from its seed and its step.
    """
    if world.main and not step:
        torch.manual_seed(seed)
        return
    digest = hashlib.sha256(f"{seed} {step} {world.rank}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:7], "big"))


def launch() -> str | None:
    """A name for this launch by torchrun, the same after each restart; None without torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    name = os.environ["TORCHELASTIC_RUN_ID"]
    # By default torchrun's own process stands for it: it lives as long as it restarts its workers.
    return f"{socket.gethostname()} {os.getppid()}" if name == "none" else name


def restarted() -> bool:
    """Whether torchrun has started these processes again after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
