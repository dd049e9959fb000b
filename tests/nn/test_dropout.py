"""Dropout masks: what is dropped together, what is kept, and how it is scaled."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from equilibria.cells import ContractiveCell, TransformerXLCell
from equilibria.nn import drop_connect, dropout_mask, embedding_row_dropout


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 7), st.floats(0.1, 0.9), st.integers(0, 999))
def test_a_word_is_dropped_wherever_it_occurs_or_nowhere(batch, length, probability, seed):
    torch.manual_seed(seed)
    tokens, embedded = torch.randint(5, (batch, length)), torch.rand(batch, length, 3) + 1
    found = embedding_row_dropout(embedded, tokens, 5, probability, training=True)
    for word in tokens.unique():
        scale = (found / embedded)[tokens == word].unique()
        assert scale.max() - scale.min() < 1e-5
        assert min(abs(scale[0]), abs(scale[0] - 1 / (1 - probability))) < 1e-5


def test_it_equals_a_look_up_in_an_embedding_with_dropped_rows():
    torch.manual_seed(0)
    weight, tokens = torch.randn(50, 4, requires_grad=True), torch.arange(200).reshape(4, 50) % 50
    found = embedding_row_dropout(F.embedding(tokens, weight), tokens, 50, 0.3, training=True)
    kept = torch.stack([(found[tokens == word] != 0).any() for word in range(50)])
    assert 0.5 < kept.double().mean() < 0.9
    torch.testing.assert_close(found, F.embedding(tokens, weight * kept.unsqueeze(1) / 0.7))
    found.sum().backward()
    assert weight.grad is not None
    assert (weight.grad[~kept] == 0).all()


def test_drop_connect_scales_what_is_kept_or_keeps_the_norms_of_rows():
    torch.manual_seed(0)
    weight = torch.randn(200, 100, dtype=torch.float64)
    plain, normed = (drop_connect(weight, 0.25, True, keep_norms) for keep_norms in (False, True))
    for dropped in (plain, normed):
        assert (dropped == 0).double().mean() == pytest.approx(0.25, abs=0.02)
    kept = plain != 0
    torch.testing.assert_close(plain[kept], weight[kept] / 0.75)
    torch.testing.assert_close(normed.norm(dim=1), weight.norm(dim=1))
    torch.testing.assert_close(F.cosine_similarity(normed, weight * (normed != 0)), torch.ones(200).double())


def test_a_row_of_which_all_is_dropped_is_zero_and_has_no_gradient():
    weight = torch.ones(1000, 1, dtype=torch.float64, requires_grad=True)
    dropped = drop_connect(weight, 0.5, True, keep_norms=True)
    dropped.sum().backward()
    gone = dropped[:, 0] == 0
    assert 0 < gone.sum() < 1000
    assert weight.grad is not None
    assert (weight.grad[gone] == 0).all()
    torch.testing.assert_close(weight.grad[~gone], torch.ones_like(weight.grad[~gone]))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("probability", [1.0, 1.5, -0.1, math.nan])
def test_a_probability_that_would_leave_nothing_or_is_none_is_an_error(probability, training):
    with pytest.raises(ValueError, match=rf"must be at least 0 and below 1, found {probability}"):
        dropout_mask(torch.ones(2, 3), probability, training)


@pytest.mark.parametrize("cell", [ContractiveCell, TransformerXLCell])
def test_a_cell_that_would_drop_everything_says_so(cell):
    with pytest.raises(ValueError, match=r"dropout must be at least 0 and below 1, found 1\.0"):
        cell(8, 2, 16, dropout=1.0)


@pytest.mark.parametrize(("probability", "training"), [(0.0, True), (0.5, False)])
def test_where_nothing_is_dropped_tensors_are_passed_on(probability, training):
    weight, embedded = torch.randn(3, 4), torch.randn(1, 2, 4)
    assert drop_connect(weight, probability, training, keep_norms=True) is weight
    assert embedding_row_dropout(embedded, torch.tensor([[0, 1]]), 2, probability, training) is embedded
