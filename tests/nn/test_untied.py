"""The untied embedding against the formulas of its softmax, and in a language model."""

import math

import pytest
import torch

from equilibria.cells import ContractiveCell
from equilibria.models import LanguageModel
from equilibria.nn import UntiedEmbedding


@torch.no_grad()
def test_logits_and_loss_equal_plain_loops() -> None:
    torch.manual_seed(0)
    embedding = UntiedEmbedding(7, 4, 3).double()
    hidden, targets = torch.randn(5, 3, dtype=torch.float64), torch.tensor([3, -100, 0, 6, -100])
    nats = []
    for n, target in enumerate(targets.tolist()):
        rows = zip(embedding.output.weight.tolist(), embedding.output.bias.tolist(), strict=True)
        scores = [bias + sum(w * h for w, h in zip(row, hidden[n].tolist(), strict=True)) for row, bias in rows]
        torch.testing.assert_close(embedding.logits(hidden)[n], torch.tensor(scores, dtype=torch.float64))
        if target >= 0:
            nats.append(math.log(sum(math.exp(score) for score in scores)) - scores[target])
    assert float(embedding.loss(hidden, targets)) == pytest.approx(sum(nats) / 3, abs=1e-12)
    assert torch.equal(embedding(torch.tensor([[5]]))[0, 0], embedding.rows.weight[5])


def test_an_equilibrium_may_have_classes_of_its_own() -> None:
    torch.manual_seed(0)
    model = LanguageModel(UntiedEmbedding(10, 8), ContractiveCell(d_model=8, heads=2, inner=12)).eval()
    read, targets = torch.randint(10, (2, 5)), torch.randint(10, (2, 5))
    output = model(read, targets)
    assert output.logits.shape == (2, 5, 10)
    torch.testing.assert_close(
        output.loss, torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), targets.flatten())
    )


@pytest.mark.parametrize("sizes", [(0, 4, 4), (4, 0, 4), (4, 4, 0)])
def test_sizes_below_one_are_errors(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="vocabulary_size, d_model and d_output must be at least 1"):
        UntiedEmbedding(*sizes)
