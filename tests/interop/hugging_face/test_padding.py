"""Padding is found at the left of a mask, and moved out of the way and back."""

import pytest
import torch

from equilibria.interop.hugging_face.padding import LeftPadding


def test_what_a_mask_says() -> None:
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]])
    padding = LeftPadding.of(mask, 4, 4)
    assert padding is not None
    assert padding.padding_B.tolist() == [2, 0, 1, 0]
    last = LeftPadding.of(mask, 4, 3)
    assert last is not None
    assert last.padding_B.tolist() == [1, 0, 0, 0]
    assert LeftPadding.of(None, 4, 4) is None
    assert LeftPadding.of(torch.ones(4, 4), 4, 4) is None
    for wrong in (torch.tensor([[1, 0, 1]]), torch.ones(1, 2), torch.ones(2, 3), torch.ones(1, 1, 3, 3)):
        with pytest.raises(ValueError, match="attention_mask"):
            LeftPadding.of(wrong, 1, 3)


def test_there_and_back() -> None:
    rows = torch.arange(24.0).reshape(2, 4, 3).requires_grad_()
    padding = LeftPadding(torch.tensor([3, 0]), 4)
    moved = padding.last(rows)
    assert torch.equal(moved[0, 0], rows[0, 3])
    assert torch.equal(moved[1], rows[1])
    assert torch.equal(padding.first(moved), rows)
    moved[0, 0].sum().backward()
    assert rows.grad is not None
    assert rows.grad[0, 3].tolist() == [1, 1, 1]


def test_no_target_is_predicted_from_padding() -> None:
    labels = torch.arange(8).reshape(2, 4)
    assert LeftPadding(torch.tensor([2, 0]), 4).targets(labels).tolist() == [[-100] * 3 + [3], [-100, 5, 6, 7]]
    assert LeftPadding(torch.tensor([2, 5]), 6).targets(labels).tolist() == [[-100, 1, 2, 3], [-100] * 4]
