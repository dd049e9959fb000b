"""The least that a task of one's own has to say."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from equilibria.data import Segment, SequenceTask
from equilibria.errors import UserError


@dataclass(frozen=True)
class ParityOfBits(SequenceTask):
    """The parity of all bits so far."""

    bits: int = 6
    held_out: int = 10

    @property
    def vocabulary_size(self) -> int:
        return 2

    @property
    def length(self) -> int:
        return self.bits

    @property
    def count(self) -> int:
        return 2**self.bits

    def segment(self, numbers: np.ndarray) -> Segment:
        inputs = torch.from_numpy(numbers[:, None] >> np.arange(self.bits) & 1)
        return Segment(inputs, inputs.cumsum(1) % 2, starts=True)


def test_four_members_are_a_task() -> None:
    task = ParityOfBits()
    assert (task.name, task.splits(), task.yardsticks("valid")) == ("parity of bits", ("valid",), {})
    assert task.fingerprint == "ParityOfBits(bits=6, held_out=10)" != ParityOfBits(7).fingerprint
    held_out = torch.cat([segment.inputs for segment in task.split("valid").segments(4)])
    trained = torch.cat([task.training(6).at(index).inputs for index in range(9)])
    rows = {tuple(row.tolist()) for row in torch.cat([held_out, trained])}
    assert (len(held_out), len(trained), len(rows)) == (10, 54, 64)
    assert task.tokenizer.decode([1, 0, 1]) == "1 0 1"
    task.check(2)
    with pytest.raises(UserError, match="parity of bits has 2 classes, the model only 1"):
        task.check(1)
    with pytest.raises(UserError, match="parity of bits has no test split"):
        task.split("test")
