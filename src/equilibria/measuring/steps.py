"""What training steps and evaluation passes cost: what a step keeps for its backward pass, and time.

Times are taken in turn, in one process, so that the noise of the machine meets every contender alike; a ratio is the
median of the ratios within each round.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from equilibria.data.batches import Batches, Segment
from equilibria.inference.evaluation import evaluate_segments
from equilibria.measuring.memory import saved_bytes
from equilibria.models import TokenModel
from equilibria.training.loop import TrainingLoop


def saved_by_step(model: TokenModel, batches: Batches) -> int:
    """Bytes that autograd keeps for the backward pass of a training step without the softmax, which the models of a
    comparison share. The step is the second of a text, so that there is a memory; neither it nor parameters count.

    What a checkpointed step recomputes in the backward pass is not among them: it lives for one application.
    """
    before, now = batches.at(0), batches.at(1)
    model.train()
    with torch.no_grad():
        memory = model(before.inputs).memory
    remembered: Sequence[Tensor] = () if memory is None else memory.states
    known = [*model.parameters(), *model.buffers(), now.inputs, *remembered]

    def graph() -> tuple[Tensor, Tensor | None]:
        output = model(now.inputs, memory=memory)
        return output.hidden, output.penalty

    return saved_bytes(graph, known)


@dataclass
class Contender:
    """A model that is timed, with what was measured of it.

    Attributes:
        loop: takes its training steps.
        evaluated: what an evaluation pass reads.
        training, inference: seconds of each training step and each evaluation pass.
    """

    loop: TrainingLoop
    evaluated: Sequence[Segment]
    training: list[float] = field(default_factory=list)
    inference: list[float] = field(default_factory=list)

    def step(self) -> None:
        """One timed training step."""
        start = time.perf_counter()
        float(self.loop.step())  # reading the loss waits for the device
        self.training.append(time.perf_counter() - start)

    def evaluate(self) -> None:
        """One timed evaluation pass."""
        self.inference.append(evaluate_segments(self.loop.model, self.evaluated).seconds)

    def forget(self) -> None:
        """Drops what was measured so far."""
        self.training.clear()
        self.inference.clear()


def alternate(contenders: Sequence[Contender], rounds: int) -> None:
    """Times every contender once a round, another first each time; a round before the first is not counted."""
    for number in range(-1, rounds):
        first = max(0, number) % len(contenders)
        turns = [*contenders[first:], *contenders[:first]]
        for contender in turns:
            contender.step()
        for contender in turns:
            contender.evaluate()
        if number < 0:
            for contender in contenders:
                contender.forget()
