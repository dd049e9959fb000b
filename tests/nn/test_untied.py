"""The untied embedding against the formulas of its softmax, and in a language model."""

import math
from functools import partial

import pytest
import torch

from equilibria.cells import ContractiveCell, Memory, TransformerXLCell
from equilibria.models import LanguageModel
from equilibria.nn import UntiedEmbedding


@torch.no_grad()
def test_logits_and_loss_equal_plain_loops() -> None:
    torch.manual_seed(0)
    embedding = UntiedEmbedding(7, 4, 3).double()
    hidden, targets = torch.randn(5, 3, dtype=torch.float64), torch.tensor([3, -100, 0, 6, -100])
    nats = []
    assert isinstance(embedding.output, torch.nn.Linear)
    for n, target in enumerate(targets.tolist()):
        rows = zip(embedding.output.weight.tolist(), embedding.output.bias.tolist(), strict=True)
        scores = [bias + sum(w * h for w, h in zip(row, hidden[n].tolist(), strict=True)) for row, bias in rows]
        torch.testing.assert_close(embedding.logits(hidden)[n], torch.tensor(scores, dtype=torch.float64))
        if target >= 0:
            nats.append(math.log(sum(math.exp(score) for score in scores)) - scores[target])
    assert float(embedding.loss(hidden, targets)) == pytest.approx(sum(nats) / 3, abs=1e-12)
    assert torch.equal(embedding(torch.tensor([[5]]))[0, 0], embedding.rows.weight[5])


def test_states_stay_in_the_precision_of_the_rows_under_autocast() -> None:
    torch.manual_seed(0)
    model = LanguageModel(UntiedEmbedding(10, 8, d_embed=4), TransformerXLCell(8, heads=2, inner=12), memory_length=3)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(torch.randint(10, (2, 5)))
    assert output.solution is not None
    assert isinstance(output.memory, Memory)
    assert {tensor.dtype for tensor in (output.solution.value, *output.memory.states)} == {torch.float32}


def test_an_equilibrium_may_have_classes_of_its_own() -> None:
    torch.manual_seed(0)
    model = LanguageModel(UntiedEmbedding(10, 8), ContractiveCell(d_model=8, heads=2, inner=12)).eval()
    read, targets = torch.randint(10, (2, 5)), torch.randint(10, (2, 5))
    output = model(read, targets)
    assert output.logits.shape == (2, 5, 10)
    torch.testing.assert_close(
        output.loss, torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), targets.flatten())
    )


@pytest.mark.parametrize("name", ["vocabulary_size", "d_model", "d_output"])
def test_sizes_below_one_are_errors(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, found 0"):
        partial(UntiedEmbedding, **{"vocabulary_size": 4, "d_model": 4, "d_output": 4, name: 0})()


@torch.no_grad()
def test_an_adaptive_softmax_equals_plain_loops() -> None:
    torch.manual_seed(0)
    embedding = UntiedEmbedding(12, 4, 32, d_embed=3, cutoffs=(4, 7)).double()
    softmax = embedding.output
    assert isinstance(softmax, torch.nn.AdaptiveLogSoftmaxWithLoss)
    hidden, targets = torch.randn(6, 32, dtype=torch.float64), torch.tensor([3, -100, 0, 6, 11, -100])
    logits = embedding.logits(hidden.view(2, 3, 32)).view(6, 12)
    nats = []
    for n, target in enumerate(targets.tolist()):
        head = [
            sum(w * h for w, h in zip(row, hidden[n].tolist(), strict=True)) for row in softmax.head.weight.tolist()
        ]
        log_p = [score - math.log(sum(map(math.exp, head))) for score in head]
        expected = log_p[:4]
        for cluster, pair in enumerate(softmax.tail):
            assert isinstance(pair, torch.nn.Sequential)
            project, scores = (part.weight for part in pair if isinstance(part, torch.nn.Linear))
            tail = (scores @ (project @ hidden[n])).tolist()
            total = math.log(sum(map(math.exp, tail)))
            expected += [log_p[4 + cluster] + score - total for score in tail]
        torch.testing.assert_close(logits[n], torch.tensor(expected, dtype=torch.float64))
        if target >= 0:
            nats.append(-expected[target])
    assert float(embedding.loss(hidden, targets)) == pytest.approx(sum(nats) / 4, abs=1e-12)
    known = targets >= 0
    theirs = softmax(hidden[known], targets[known]).loss
    assert float(embedding.loss(hidden, targets)) == pytest.approx(float(theirs), abs=1e-12)
    features = embedding.project.get_parameter("weight") @ embedding.rows.weight[5]
    torch.testing.assert_close(embedding(torch.tensor([[5]]))[0, 0], features + embedding.project.get_parameter("bias"))


def test_clusters_without_targets_have_gradients_of_zero() -> None:
    embedding = UntiedEmbedding(12, 16, cutoffs=(4, 7))
    embedding.loss(torch.randn(3, 16), torch.tensor([0, 1, 2])).backward()
    unseen = [p for name, p in embedding.named_parameters() if "tail" in name]
    assert len(unseen) == 4
    assert all(p.grad is not None and not p.grad.any() for p in unseen)


def test_impossible_clusters_are_named() -> None:
    with pytest.raises(ValueError, match=r"cutoffs must rise between 0 and vocabulary_size 12, found \(4, 12\)"):
        UntiedEmbedding(12, 16, cutoffs=(4, 12))
    with pytest.raises(ValueError, match=r"d_output must be at least 4\*\*2 for 2 cutoffs, found 15"):
        UntiedEmbedding(12, 16, 15, cutoffs=(4, 7))
    with pytest.raises(ValueError, match="d_embed must be at least 1, found 0"):
        UntiedEmbedding(12, 16, d_embed=0)
