"""One process of `equilibria bench scaling`, started by torchrun: takes steps and writes down how long they took."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from equilibria.cells import ContractiveCell
from equilibria.configuration import TrainingRecipe
from equilibria.data.batches import TrainingStream
from equilibria.distributed import World, joined, training_device
from equilibria.measuring.steps import timed_step
from equilibria.models import LanguageModel
from equilibria.nn import TiedEmbedding
from equilibria.training.loop import TrainingLoop
from equilibria.training.parallel import local


@dataclass(frozen=True)
class Memory:
    """Bytes of this process.

    Attributes:
        weights: its parameters.
        optimizer: what its optimizer keeps of them.
        peak: the most that was resident since before the model was made, beyond what was resident then; on CUDA what
            the allocator gave out at most.
    """

    weights: int
    optimizer: int
    peak: int


def main(arguments: list[str]) -> NoReturn:
    """Takes the steps, writes the figures and ends the process."""
    options = options_of().parse_args(arguments)
    torch.set_num_threads(options.threads)
    device = training_device("auto")
    with joined(device) as world:
        before = resident(device)
        loop = loop_of(options, device, world)
        for _ in range(options.warm_up):
            loop.step()
        seconds = [timed_step(loop) for _ in range(options.steps)]
        weights = [local(parameter.detach()) for parameter in loop.model.parameters()]
        tensors = [local(tensor) for tensor in loop.checkpoint().trainer.values()]
        kept = [tensor for name, tensor in zip(loop.checkpoint().trainer, tensors, strict=True) if "optimizer." in name]
        memory = Memory(size(weights), size(kept), resident(device) - before)
        communicating = share_communicating(loop, options.profiled) if world.size > 1 else 0.0
        figures = world.gather({"seconds": seconds, "communicating": communicating, "memory": vars(memory)})
        if world.main:
            options.out.write_text(json.dumps({"device": device, "processes": figures}), encoding="utf-8")
        # All is known and written. After a profile, taking gloo's threads down can wait for ever: leave them.
        sys.stdout.flush()
        os._exit(0)


def options_of() -> ArgumentParser:
    """What a process is told."""
    parser = ArgumentParser()
    parser.add_argument("--strategy", choices=("ddp", "fsdp2"), default="ddp")
    for name in ("width", "vocabulary", "batch-size", "length", "steps", "warm-up", "profiled", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    return parser


def loop_of(options: Namespace, device: str, world: World) -> TrainingLoop:
    """The default model of that width, over random tokens."""
    torch.manual_seed(0)
    cell = ContractiveCell(options.width, heads=options.width // 32, inner=4 * options.width)
    model = LanguageModel(TiedEmbedding(options.vocabulary, options.width), cell, memory_length=options.length)
    recipe = TrainingRecipe(batch_size=options.batch_size, segment_length=options.length, steps=1000)
    tokens = np.random.default_rng(0).integers(0, options.vocabulary, 200_000).astype(np.int64)
    batches = TrainingStream(tokens, options.batch_size, options.length)
    return TrainingLoop(model.to(device), recipe, batches, world=world, strategy=options.strategy)


def share_communicating(loop: TrainingLoop, steps: int) -> float:
    """The share of the time of some steps in which a collective is under way, waiting for other processes included.

    What a backend does shows in the profile under its name; a collective that goes on beside computation counts too.
    """
    with profile(
        activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if loop.device.type == "cuda" else [])]
    ) as seen:
        start = time.perf_counter()
        for _ in range(steps):
            loop.step()
        taken = time.perf_counter() - start
    ranges = [event.time_range for event in seen.events() or () if event.name.startswith(("gloo:", "nccl"))]
    return joint([(part.start, part.end) for part in ranges]) / 1e6 / taken


def joint(parts: list[tuple[float, float]]) -> float:
    """The length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(parts):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def size(tensors: list[Tensor]) -> int:
    """Bytes of tensors."""
    return sum(tensor.nbytes for tensor in tensors)


def resident(device: str) -> int:
    """The most memory in use so far, in bytes."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


if __name__ == "__main__":
    main(sys.argv[1:])
