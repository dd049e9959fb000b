"""The least that a task of one's own has to say."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from equilibria.data import Segment, SequenceTask
from equilibria.data.batches import NO_TARGET
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


@dataclass(frozen=True)
class FewParities(ParityOfBits):
    """Of so many training sequences."""

    samples: int | None = 20  # pyright: ignore[reportIncompatibleMethodOverride]


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 54), st.integers(1, 60))
def test_few_samples_come_once_in_each_pass_in_another_order(samples: int, batch_size: int) -> None:
    task, total = FewParities(samples=samples), 3 * samples
    stream = task.training(batch_size)
    batches = [stream.at(index).inputs for index in range(-(-total // batch_size))]
    rows = [tuple(row) for row in torch.cat(batches)[:total].tolist()]
    passes = [rows[start : start + samples] for start in range(0, total, samples)]
    expected = {tuple(row) for row in task.segment(np.arange(10, 10 + samples)).inputs.tolist()}
    assert [set(found) for found in passes] == [expected] * 3
    assert len(expected) == samples
    if samples > 20:
        assert passes[0] != passes[1] != passes[2]
    # A function of the index, and of rows one by one.
    last = len(batches) - 1
    alone = [task.training(batch_size).at(last, [row]).inputs for row in range(batch_size)]
    assert torch.equal(torch.cat(alone), batches[last])


def test_more_samples_than_there_are_is_an_error() -> None:
    with pytest.raises(UserError, match="samples must be between 1 and 54, found 55"):
        FewParities(samples=55).training(4)


def test_positions_without_a_target_do_not_make_up_the_tokens() -> None:
    class Halved(ParityOfBits):
        def segment(self, numbers: np.ndarray) -> Segment:
            whole = super().segment(numbers)
            whole.targets[:, ::2] = NO_TARGET
            return whole

    for task, batches in ((ParityOfBits(), 2), (Halved(), 3)):
        assert len([*task.split("valid").segments(3, max_tokens=25)]) == batches
