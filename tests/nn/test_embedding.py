"""The tied embedding against the formulas of its softmax."""

from __future__ import annotations

import math

import pytest
import torch

from equilibria.nn import TiedEmbedding


@torch.no_grad()
def test_logits_and_loss_equal_plain_loops():
    torch.manual_seed(0)
    embedding = TiedEmbedding(7, 4).double()
    hidden, targets = torch.randn(5, 4, dtype=torch.float64), torch.tensor([3, -100, 0, 6, -100])
    nats = []
    for n, target in enumerate(targets.tolist()):
        scores = [sum(w * h for w, h in zip(row, hidden[n].tolist(), strict=True)) for row in embedding.weight.tolist()]
        torch.testing.assert_close(embedding.logits(hidden)[n], torch.tensor(scores, dtype=torch.float64))
        if target >= 0:
            nats.append(math.log(sum(math.exp(score) for score in scores)) - scores[target])
    assert float(embedding.loss(hidden, targets)) == pytest.approx(sum(nats) / 3, abs=1e-12)


def test_the_loss_of_a_large_vocabulary_and_its_gradients_equal_the_plain_formula():
    torch.manual_seed(0)
    embedding, targets = TiedEmbedding(20_001, 3), torch.tensor([3, -100, 20_000, 6])
    hidden = torch.randn(4, 3, requires_grad=True)
    plain = torch.nn.functional.cross_entropy(embedding.logits(hidden), targets)
    expected = torch.autograd.grad(plain, (hidden, embedding.weight))
    loss = embedding.loss(hidden, targets)
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(torch.autograd.grad(loss, (hidden, embedding.weight)), expected)


def test_rows_start_with_variance_one_over_the_width():
    torch.manual_seed(0)
    embedding = TiedEmbedding(2000, 64)
    assert float(embedding.weight.detach().std()) == pytest.approx(1 / 8, rel=0.02)
    assert torch.equal(embedding(torch.tensor([[3]]))[0, 0], embedding.weight[3])
    assert (embedding.vocabulary_size, embedding.d_model) == (2000, 64)


@pytest.mark.parametrize(("sizes", "name"), [((0, 4), "vocabulary_size"), ((4, 0), "d_model")])
def test_sizes_below_one_are_errors(sizes, name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, found 0"):
        TiedEmbedding(*sizes)
