"""Adaptive embedding and softmax: against plain loops, against PyTorch's untied one, and at published sizes."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from allocations import peak_bytes
from equilibria.nn.adaptive import AdaptiveEmbedding

WIKITEXT_103 = 267_735
CUTOFFS = (20_000, 40_000, 200_000)


def random(embedding: AdaptiveEmbedding, seed: int = 0) -> AdaptiveEmbedding:
    """In float64, every parameter drawn at random, biases too."""
    generator = torch.Generator().manual_seed(seed)
    embedding.double()
    with torch.no_grad():
        for parameter in embedding.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return embedding


def projections(embedding: AdaptiveEmbedding) -> tuple[list[Tensor], list[Tensor]]:
    """Those of the input and those of the softmax, as nested lists of numbers would be read off the state."""
    state = embedding.state_dict()
    clusters = len(embedding.tables)
    if "projections.0" not in state:
        identity = torch.eye(embedding.d_model, dtype=torch.float64)
        return [identity] * clusters, [identity] * clusters
    own = [state[f"projections.{cluster}"] for cluster in range(clusters)]
    return own, [state.get(f"own_projections.{cluster}", own[cluster]) for cluster in range(clusters)]


def place(embedding: AdaptiveEmbedding, token: int) -> tuple[int, int]:
    """A token's cluster and its row in it."""
    cluster = max(number for number, first in enumerate(embedding.edges[:-1]) if token >= first)
    return cluster, token - embedding.edges[cluster]


def feature(embedding: AdaptiveEmbedding, token: int) -> list[float]:
    """P_i E_i[t], a product and a sum at a time."""
    cluster, row = place(embedding, token)
    table = embedding.state_dict()[f"tables.{cluster}.weight"]
    projection = projections(embedding)[0][cluster]
    width = table.shape[1]
    return [sum(float(projection[d, e]) * float(table[row, e]) for e in range(width)) for d in range(embedding.d_model)]


def log_softmax(scores: list[float]) -> list[float]:
    normaliser = math.log(sum(math.exp(score) for score in scores))
    return [score - normaliser for score in scores]


def log_probabilities(embedding: AdaptiveEmbedding, hidden: list[float]) -> list[float]:
    """Of every token, from the formulas."""
    state, shortlist = embedding.state_dict(), embedding.edges[1]
    clusters = []
    for cluster, projection in enumerate(projections(embedding)[1]):
        table, bias = state[f"tables.{cluster}.weight"], state[f"biases.{cluster}"]
        low = [
            sum(float(projection[d, e]) * hidden[d] for d in range(embedding.d_model)) for e in range(table.shape[1])
        ]
        scores = [
            float(bias[row]) + sum(float(table[row, e]) * low[e] for e in range(len(low)))
            for row in range(table.shape[0])
        ]
        clusters.append(log_softmax(scores))
    found = clusters[0][:shortlist]
    for number, tail in enumerate(clusters[1:]):
        found += [clusters[0][shortlist + number] + value for value in tail]
    return found


@st.composite
def embeddings(draw: st.DrawFn) -> AdaptiveEmbedding:
    vocabulary = draw(st.integers(2, 14))
    cutoffs = sorted(draw(st.sets(st.integers(1, vocabulary - 1), max_size=3)))
    div_val = draw(st.integers(1, 3))
    d_embed = div_val ** len(cutoffs) * draw(st.integers(1, 2)) + draw(st.integers(0, 1))
    d_model = draw(st.just(d_embed) | st.integers(1, 5))
    untied = draw(st.integers(0, len(cutoffs) + 1))
    embedding = AdaptiveEmbedding(vocabulary, d_model, cutoffs, div_val, untied, d_embed=d_embed)
    return random(embedding, draw(st.integers(0, 99)))


@settings(max_examples=40, deadline=None)
@given(embeddings(), st.data())
def test_features_and_probabilities_are_those_of_the_formulas(embedding: AdaptiveEmbedding, data: st.DataObject):
    tokens = data.draw(st.lists(st.integers(0, embedding.vocabulary_size - 1), min_size=1, max_size=6))
    found = embedding(torch.tensor([tokens]))
    expected = torch.tensor([[feature(embedding, token) for token in tokens]], dtype=torch.float64)
    torch.testing.assert_close(found, expected)

    hidden = torch.randn(2, 1, embedding.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = embedding.logits(hidden)
    expected = [log_probabilities(embedding, row.tolist()) for row in hidden.flatten(0, 1)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64).unflatten(0, (2, 1)))
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(2, 1, dtype=torch.float64))


@settings(max_examples=40, deadline=None)
@given(embeddings(), st.data())
def test_the_loss_and_its_gradients_are_those_of_the_probabilities(embedding: AdaptiveEmbedding, data: st.DataObject):
    ids = st.integers(0, embedding.vocabulary_size - 1) | st.just(-100)
    targets = torch.tensor(data.draw(st.lists(ids, min_size=1, max_size=8).filter(lambda t: max(t) >= 0)))
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(len(targets), embedding.d_model, dtype=torch.float64, generator=generator).requires_grad_()
    loss = embedding.loss(hidden, targets)
    there = targets != -100
    picked = embedding.logits(hidden)[there].gather(-1, targets[there].unsqueeze(-1))
    torch.testing.assert_close(loss, -picked.mean())
    inputs = [hidden, *embedding.parameters()]
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    expected = torch.autograd.grad(-picked.mean(), inputs, allow_unused=True, materialize_grads=True)
    softmax_only = [index for index, gradient in enumerate(found) if gradient is not None]
    for index in softmax_only:
        torch.testing.assert_close(found[index], expected[index])
    assert all(expected[index].abs().max() == 0 for index in set(range(len(inputs))) - set(softmax_only))


def test_it_is_pytorchs_adaptive_softmax_where_that_can_say_it():
    """With projections of their own, the first the identity, and no biases in the tails."""
    embedding = random(AdaptiveEmbedding(11, 8, (3, 7), div_val=2, untied_projections=3))
    peer = nn.AdaptiveLogSoftmaxWithLoss(8, 11, [3, 7], div_value=2, head_bias=True).double()
    with torch.no_grad():
        embedding.own_projections[0].copy_(torch.eye(8))
        for bias in list(embedding.biases)[1:]:
            bias.zero_()
    tails = {
        f"tail.{number - 1}.{part}.weight": matrix
        for number in (1, 2)
        for part, matrix in enumerate((embedding.own_projections[number].t(), embedding.weights[number]))
    }
    peer.load_state_dict({"head.weight": embedding.weights[0], "head.bias": embedding.biases[0], **tails})
    hidden, targets = torch.randn(20, 8, dtype=torch.float64), torch.arange(20) % 11
    torch.testing.assert_close(embedding.logits(hidden), peer.log_prob(hidden))
    torch.testing.assert_close(embedding.loss(hidden, targets), peer(hidden, targets).loss)


@pytest.mark.parametrize(("div_val", "d_embed"), [(1, None), (2, None), (1, 12)])
def test_features_are_in_the_precision_of_the_tables_under_autocast_too(div_val: int, d_embed: int | None):
    """Solves start in theirs, and lower precision is for products alone."""
    embedding, tokens = AdaptiveEmbedding(30, 8, (10, 20), div_val, d_embed=d_embed), torch.arange(30).view(2, 15)
    with torch.autocast("cpu", torch.bfloat16):
        found = embedding(tokens)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, embedding(tokens), rtol=0.02, atol=0.02)


def test_projections_are_one_parameter():
    embedding = AdaptiveEmbedding(30, 8, (10, 20), div_val=2, untied_projections=0)
    assert len(embedding.own_projections) == 0
    tokens = torch.tensor([[25]])
    embedding(tokens).sum().backward()
    inward = embedding.projections[2].grad
    assert inward is not None
    inward = inward.clone()
    embedding.zero_grad()
    embedding.loss(torch.ones(1, 8), tokens[0]).backward()
    outward = embedding.projections[2].grad
    assert outward is not None
    assert outward.abs().max() > 0
    embedding.zero_grad()
    (embedding(tokens).sum() + embedding.loss(torch.ones(1, 8), tokens[0])).backward()
    both = embedding.projections[2].grad
    torch.testing.assert_close(both, inward + outward)


def test_every_parameter_has_a_gradient_although_a_cluster_has_no_target():
    embedding = AdaptiveEmbedding(30, 8, (10, 20), div_val=2)
    hidden = embedding(torch.tensor([[1, 2]])).flatten(0, 1)
    embedding.loss(hidden, torch.tensor([3, 4])).backward()
    assert all(parameter.grad is not None for parameter in embedding.parameters())
    assert float(embedding.biases[2].grad.abs().max()) == 0.0


def test_the_loss_never_forms_all_scores():
    torch.manual_seed(0)
    embedding = AdaptiveEmbedding(30_000, 32, (1000, 5000), div_val=2)
    hidden, targets = torch.randn(2048, 32, requires_grad=True), torch.randint(30_000, (2048,))
    scores = 2048 * 30_000 * 4
    assert peak_bytes(lambda: embedding.loss(hidden, targets).backward()) < scores / 2
    assert peak_bytes(lambda: embedding.logits(hidden).logsumexp(-1).sum().backward()) > 2 * scores


def test_a_loss_without_targets_is_not_a_number():
    embedding = AdaptiveEmbedding(30, 8, (10, 20), div_val=2)
    assert embedding.loss(torch.ones(2, 8), torch.full((2,), -100)).isnan()


@pytest.mark.parametrize("mates", [0, 50, 1000])
def test_features_do_not_depend_on_the_other_tokens(mates: int):
    """Exactly: a product is not rounded otherwise when a token is the only one of its cluster."""
    torch.manual_seed(0)
    embedding = AdaptiveEmbedding(3000, 256, (20, 300), div_val=4)
    crowd = torch.randint(300, 3000, (4, 33))
    alone = torch.full_like(crowd, mates)
    alone[0, 7] = crowd[0, 7]
    assert torch.equal(embedding(crowd)[0, 7], embedding(alone)[0, 7])


@pytest.mark.parametrize("div_val", [1, 4])
@torch.no_grad()
def test_scaled_weights_give_features_and_scores_of_unit_size(div_val: int):
    torch.manual_seed(0)
    embedding = AdaptiveEmbedding(4000, 256, (1000, 2000), div_val)
    features = embedding(torch.arange(4000).unsqueeze(0)) * 16.0
    for first, last in ((0, 1000), (1000, 2000), (2000, 4000)):
        assert float(features[:, first:last].std()) == pytest.approx(1.0, abs=0.1)
    head = (embedding._projected(torch.randn(500, 256), 0) @ embedding.weights[0].t()).std()
    assert float(head) == pytest.approx(1.0, abs=0.1)


@torch.no_grad()
def test_published_weights():
    torch.manual_seed(0)
    embedding = AdaptiveEmbedding(4000, 256, (1000, 2000), 2, initialisation="published")
    for weight in embedding.weights:
        assert float(weight.std()) == pytest.approx(0.02, rel=0.05)
    for projection in (*embedding.projections, *embedding.own_projections):
        assert float(projection.std()) == pytest.approx(0.01, rel=0.05)
    assert all(float(bias.abs().max()) == 0.0 for bias in embedding.biases)


@pytest.mark.parametrize("bad", [30, -1])
@pytest.mark.parametrize("cutoffs", [(), (10, 20)])
def test_a_token_outside_the_vocabulary_is_an_error(bad: int, cutoffs: tuple[int, ...]):
    embedding = AdaptiveEmbedding(30, 8, cutoffs)
    with pytest.raises(IndexError):
        embedding(torch.tensor([[1, bad]]))
    with pytest.raises((IndexError, RuntimeError), match=r"out of (bounds|range)"):
        embedding.loss(torch.ones(2, 8), torch.tensor([1, bad]))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"cutoffs": (10, 10)}, "cutoffs"),
        ({"cutoffs": (0, 10)}, "cutoffs"),
        ({"cutoffs": (10, 30)}, "cutoffs"),
        ({"cutoffs": (10, 20), "div_val": 3}, "div_val 3"),
        ({"div_val": 0}, "div_val must be at least 1, found 0"),
        ({"cutoffs": (10, 20), "untied_projections": 4}, "untied_projections must be 0 to 3"),
    ],
)
def test_impossible_sizes_are_named(options: dict[str, Any], named: str):
    with pytest.raises(ValueError, match=named):
        AdaptiveEmbedding(30, 8, **options)


def count(d_model: int, cutoffs: tuple[int, ...] = (), div_val: int = 1, untied_projections: int = 1) -> int:
    with torch.device("meta"):
        embedding = AdaptiveEmbedding(WIKITEXT_103, d_model, cutoffs, div_val, untied_projections)
    return sum(parameter.numel() for parameter in embedding.parameters())


def test_published_sizes():
    """Of embedding and softmax together, in the models of the DEQ paper and its successors.

    The DEQ-Transformer has 97.85 M parameters, 69.75 M in the cell and 1.472 M in its injection (a layer 700 → 2100):
    26.63 M are left. That is the number with no projection tied; those that are tied have been counted twice.
    """
    tables = 20_000 * 700 + 20_000 * 175 + 160_000 * 43 + 67_735 * 10
    projections, biases, clusters = 700 * (700 + 175 + 43 + 10), WIKITEXT_103, 3 * 701
    sizes = (700, CUTOFFS, 4)
    assert count(*sizes, untied_projections=0) == tables + projections + biases + clusters == 25_976_788
    assert count(*sizes) == tables + projections + 700 * 700 + biases + clusters == 26_466_788
    assert count(*sizes, untied_projections=4) == 26_626_388
    injection, cell = 700 * 2100 + 2100, 69.75e6
    assert count(*sizes, untied_projections=4) + injection + cell == pytest.approx(97.85e6, rel=1e-4)
    assert count(*sizes) + injection + cell == pytest.approx(97.85e6, rel=0.005)
    # DEQ-TrellisNet: 181.7 M with 44.3 M in the cell
    assert count(512) == WIKITEXT_103 * 513
    assert count(512) == pytest.approx(181.7e6 - 44.3e6, rel=0.005)
    assert count(512, (20_000, 40_000, 80_000)) == pytest.approx(181.7e6 - 44.3e6, rel=0.005)


def test_it_learns_to_copy():
    """Embedding and softmax alone: after training, each token predicts the one that follows it in a ring."""
    torch.manual_seed(0)
    embedding = AdaptiveEmbedding(40, 16, (8, 20), div_val=2)
    optimizer = torch.optim.Adam(embedding.parameters(), lr=0.02)
    tokens = torch.arange(40)
    for _ in range(150):
        loss = embedding.loss(embedding(tokens.unsqueeze(0)).flatten(0, 1) * 4.0, tokens.roll(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    hidden = embedding(tokens.unsqueeze(0)).flatten(0, 1) * 4.0
    assert float(embedding.loss(hidden, tokens.roll(-1)).detach()) < 0.1
    assert torch.equal(embedding.logits(hidden).argmax(-1), tokens.roll(-1))


def test_untied_tables_are_two_models_in_one() -> None:
    tied = [random(AdaptiveEmbedding(20, 6, (7, 12), 2), seed) for seed in (1, 2)]
    both = AdaptiveEmbedding(20, 6, (7, 12), 2, tied_tables=False).double()
    state = tied[1].state_dict()
    state = {name.replace("tables", "own_tables"): tensor for name, tensor in state.items()}
    embedded = {name: tensor for name, tensor in tied[0].state_dict().items() if "tables" in name}
    embedded["tables.0.weight"] = embedded["tables.0.weight"][:7]  # no rows for clusters, which only a softmax has
    tied[0].load_state_dict({**tied[0].state_dict(), **{k: v for k, v in state.items() if "projections" in k}})
    both.load_state_dict(state | embedded)
    tokens, hidden = torch.arange(20).view(2, 10), torch.randn(9, 6, dtype=torch.float64)
    # Close, not equal: weights elsewhere in memory may meet other kernels.
    torch.testing.assert_close(both(tokens), tied[0](tokens))
    torch.testing.assert_close(both.logits(hidden), tied[1].logits(hidden))
    loss = both.loss(hidden, torch.arange(0, 18, 2))
    torch.testing.assert_close(loss, tied[1].loss(hidden, torch.arange(0, 18, 2)))
    (loss + both(tokens).sum()).backward()
    assert all(parameter.grad is not None for parameter in both.parameters())
