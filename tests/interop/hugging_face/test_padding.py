"""Padding is found in a mask, and moved out of the way and back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from equilibria.interop.hugging_face.padding import Padding, check_positions

MASKS = st.integers(1, 4).flatmap(
    lambda rows: st.integers(1, 6).flatmap(
        lambda length: st.lists(
            st.lists(st.booleans(), min_size=length, max_size=length), min_size=rows, max_size=rows
        ).map(torch.tensor)
    )
)


@given(MASKS)
def test_a_row_is_the_tokens_that_the_mask_names(mask: torch.Tensor) -> None:
    batch, length = mask.shape
    padding = Padding.of(mask.int(), batch, 0, length)
    if padding is None:
        assert bool(mask.all())
        return
    rows = torch.randn(batch, length, 2)
    first, last = padding.text_first(rows), padding.text_last(rows)
    for row, present in enumerate(mask):
        text = rows[row, present] if present.any() else rows[row]  # a row without text is all text
        assert padding.padding_B[row] == length - len(text)
        assert torch.equal(first[row, : len(text)], text)
        assert torch.equal(last[row, length - len(text) :], text)
        back = torch.zeros(length, 2)
        back[present if present.any() else slice(None)] = text
        assert torch.equal(padding.from_first(first)[row], back)
    assert torch.equal(padding.from_last(last), rows)


def test_states_of_padding_have_no_gradient() -> None:
    rows = torch.arange(24.0).reshape(2, 4, 3).requires_grad_()
    padding = Padding.of(torch.tensor([[0, 0, 0, 1], [1, 1, 1, 1]]), 2, 0, 4)
    assert padding is not None
    padding.from_first(padding.text_first(rows)).sum().backward()
    assert rows.grad is not None
    assert rows.grad[:, :, 0].tolist() == [[0, 0, 0, 1], [1, 1, 1, 1]]


def test_a_cache_has_its_padding_before_its_text() -> None:
    padding = Padding.of(torch.tensor([[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]]), 3, 2, 2)
    assert padding is not None
    assert padding.padding_B.tolist() == [1, 2, 3]
    assert Padding.of(torch.tensor([[0, 1, 1]]), 1, 0, 2) is None  # of a longer mask the last columns count
    with pytest.raises(ValueError, match="padding after text"):
        Padding.of(torch.tensor([[0, 1, 0, 1]]), 1, 2, 2)
    for wrong in (torch.ones(1, 2), torch.ones(2, 3), torch.ones(1, 1, 3, 3)):
        with pytest.raises(ValueError, match="attention_mask must be"):
            Padding.of(wrong, 1, 1, 2)


def test_padding_predicts_nothing() -> None:
    padding = Padding.of(torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]]), 2, 0, 4)
    assert padding is not None
    assert padding.targets(torch.arange(8).reshape(2, 4)).tolist() == [[-100, -100, 2, 3], [4, 5, 6, -100]]


def test_positions_are_consecutive() -> None:
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    check_positions(torch.tensor([[1, 1, 0, 1], [7, 8, 9, 10]]), mask, 4)
    check_positions(torch.tensor([[3, 4]]), None, 2)
    check_positions(torch.tensor([[9]]), torch.ones(1, 4), 1)
    for wrong in (torch.tensor([[0, 1, 0, 1]]), torch.tensor([[0, 1, 2]]), torch.tensor([[0, 2, 4, 6]])):
        with pytest.raises(ValueError, match="consecutive"):
            check_positions(wrong, None, 4)
