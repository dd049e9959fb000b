"""What training steps and evaluation passes cost: memory that a step keeps for its backward pass, and time.

Contenders are timed in turn, in one process, so that the noise of the machine affects all alike.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from equilibria.cells import Cache, Memory
from equilibria.data.batches import Batches, Segment
from equilibria.depths import Depth
from equilibria.inference.evaluation import evaluate_segments
from equilibria.measuring.memory import peak_bytes, saved_bytes
from equilibria.models import TokenModel
from equilibria.training.loop import TrainingLoop


def step_memory(
    model: TokenModel,
    before: Sequence[Tensor],
    inputs: Sequence[Tensor],
    graph: Callable[[Memory | None], object],
    depth: Depth | None = None,
) -> tuple[int, int]:
    """Bytes that a training step saves for its backward pass, and bytes of the segment memory.

    Parameters, buffers, inputs, the segment memory and what a checkpointed step recomputes do not count as saved.

    Args:
        model: on its device.
        before: token ids `(B, L)` of the segments before the step, which fill the memory.
        inputs: tensors that exist anyway.
        graph: runs the step's forward pass from a memory, and returns what keeps its graph alive.
        depth: of the segments before; None for the model's own.
    """
    model.train()
    memory = None
    with torch.no_grad():
        for tokens in before:
            memory = model(tokens, memory=memory, depth=depth).memory
    assert not isinstance(memory, Cache)  # which only an inference depth returns
    remembered = [] if memory is None else memory.flatten()
    saved = saved_bytes(lambda: graph(memory), [*model.parameters(), *model.buffers(), *inputs, *remembered])
    return saved, sum(state.untyped_storage().nbytes() for state in remembered)


def saved_by_step(model: TokenModel, batches: Batches) -> int:
    """Bytes that the second step of a text saves for its backward pass, without the softmax."""
    before, now = batches.at(0), batches.at(1)

    def graph(memory: Memory | None) -> tuple[Tensor, Tensor | None]:
        output = model(now.inputs, memory=memory)
        return output.hidden, output.penalty

    return step_memory(model, [before.inputs], [now.inputs], graph)[0]


def peak_of_step(model: TokenModel, batches: Batches) -> int:
    """Bytes of new tensors at the peak of the second step of a text, gradients among them, without the softmax.

    The solver's history counts, and what a checkpointed step computes again.
    """
    before, now = batches.at(0), batches.at(1)
    model.train()
    with torch.no_grad():
        memory = model(before.inputs, memory=None).memory

    def step() -> None:
        output = model(now.inputs, memory=memory)
        loss = output.hidden.square().mean()
        (loss if output.penalty is None else loss + output.penalty).backward()

    try:
        return peak_bytes(step, now.inputs.device)
    finally:
        model.zero_grad()


def synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def timed_step(loop: TrainingLoop) -> float:
    """Seconds of one training step, from an idle device to an idle device."""
    synchronize(loop.device)
    start = time.perf_counter()
    float(loop.step())  # reading the loss waits for the device
    synchronize(loop.device)
    return time.perf_counter() - start


@dataclass
class Contender:
    """A model that is timed, with the seconds of each training step and each evaluation pass."""

    loop: TrainingLoop
    evaluated: Sequence[Segment]
    training: list[float] = field(default_factory=list)
    inference: list[float] = field(default_factory=list)

    def step(self) -> None:
        self.training.append(timed_step(self.loop))

    def evaluate(self) -> None:
        self.inference.append(evaluate_segments(self.loop.model, self.evaluated).seconds)


def alternate(contenders: Sequence[Contender], rounds: int) -> None:
    """Times every contender once a round, another first each time, after a round that is not counted."""
    for number in range(-1, rounds):
        first = max(0, number) % len(contenders)
        turns = [*contenders[first:], *contenders[:first]]
        for contender in turns:
            contender.step()
        for contender in turns:
            contender.evaluate()
        if number < 0:
            for contender in contenders:
                contender.training.clear()
                contender.inference.clear()
