"""Dropouts and penalties around the layers: the same formulas for a cell at any depth and for a stack of layers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from equilibria.cells import ContractiveCell, TrellisCell
from equilibria.depths import Equilibrium, UnrolledDepth
from equilibria.models import LanguageModel, Regularisation
from equilibria.models.causal import CausalModel
from equilibria.nn import TiedEmbedding
from equilibria.paper.baselines import GRULayer, SequenceModel
from equilibria.solvers import Picard

VOCABULARY, WIDTH = 13, 6

Build = Callable[[Regularisation], CausalModel]


def gru(regularisation: Regularisation) -> CausalModel:
    return SequenceModel(TiedEmbedding(VOCABULARY, WIDTH), [GRULayer(WIDTH, WIDTH)], regularisation)


def trellis(regularisation: Regularisation) -> CausalModel:
    cell = TrellisCell(WIDTH, 4, recurrent_std=0.3)
    return LanguageModel(TiedEmbedding(VOCABULARY, WIDTH), cell, UnrolledDepth(3), regularisation=regularisation)


def equilibrium(regularisation: Regularisation) -> CausalModel:
    cell = ContractiveCell(WIDTH, heads=1, inner=8)
    depth = Equilibrium(solver=Picard(tol=1e-5, max_evaluations=20, scope="prefix"), residual_penalty=0.0)
    embedding = TiedEmbedding(VOCABULARY, WIDTH)
    return LanguageModel(embedding, cell, depth, memory_length=3, chunk_length=3, regularisation=regularisation)


models = pytest.mark.parametrize("build", [gru, trellis, equilibrium])


def built(build: Build, regularisation: Regularisation) -> CausalModel:
    torch.manual_seed(1)
    return build(regularisation).train()


def tokens(rows: int, length: int) -> Tensor:
    return torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(0))


@models
def test_masks_of_the_input_are_the_same_for_all_tokens_of_a_row(build: Build) -> None:
    model = built(build, Regularisation(input_dropout=0.5))
    features = model.embedded(torch.full((4, 7), 3))
    assert torch.equal(features, features[:, :1].expand_as(features))
    assert len({tuple(row.tolist()) for row in features[:, 0]}) > 1
    assert (features == 0).any()
    assert torch.equal(model.eval().embedded(torch.full((1, 1), 3)), model.embedding(torch.full((1, 1), 3)))


@models
def test_a_dropped_token_is_dropped_wherever_it_occurs(build: Build) -> None:
    model, read = built(build, Regularisation(token_dropout=0.5)), tokens(8, 20)
    found = model.embedded(read)
    gone = (found == 0).all(-1)
    per_token = [gone[read == token] for token in range(VOCABULARY)]
    assert all(bool(occurrences.all()) or not bool(occurrences.any()) for occurrences in per_token)
    assert 0 < sum(bool(occurrences.any()) for occurrences in per_token) < VOCABULARY
    torch.testing.assert_close(found[~gone], 2 * model.embedding(read)[~gone])


@models
def test_final_states_are_dropped_alike_at_all_tokens_and_scored_so(build: Build) -> None:
    model, read = built(build, Regularisation(output_dropout=0.5)), tokens(3, 6)
    raw = model.read(model.embedded(read), None).hidden_BLD
    output = model(read, read)
    factors = (output.hidden / raw).round(decimals=3)
    assert torch.equal(factors, factors[:, :1].expand_as(factors))
    assert set(factors.flatten().tolist()) == {0.0, 2.0}
    expected = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), read.flatten())
    torch.testing.assert_close(output.loss, expected)
    assert torch.equal(model.eval()(read).hidden, model.read(model.embedded(read), None).hidden_BLD)


@models
def test_penalties_equal_plain_loops(build: Build) -> None:
    model, read = (
        built(build, Regularisation(output_dropout=0.5, activation_penalty=2.0, slowness_penalty=3.0)),
        tokens(2, 6),
    )
    output = model(read, read)
    raw, hidden = model.read(model.embedded(read), None).hidden_BLD.detach(), output.hidden.detach()
    expected = 0.0
    for b in range(2):
        for t in range(6):
            for d in range(WIDTH):
                expected += 2.0 * float(hidden[b, t, d]) ** 2 / (2 * 6 * WIDTH)
                if t:
                    expected += 3.0 * float(raw[b, t, d] - raw[b, t - 1, d]) ** 2 / (2 * 5 * WIDTH)
    assert output.penalty is not None
    assert output.penalty.item() == pytest.approx(expected, rel=1e-5)
    assert model(read[:, :1], read[:, :1]).penalty is not None  # of one token: no change to penalise
    assert model.eval()(read, read).penalty is None


def test_states_on_the_way_are_dropped_as_the_final_ones() -> None:
    torch.manual_seed(1)
    cell, embedding = TrellisCell(WIDTH, 4, recurrent_std=0.3), TiedEmbedding(VOCABULARY, WIDTH)
    depth, regularisation = UnrolledDepth(3, states_every=1), Regularisation(output_dropout=0.5, activation_penalty=1.0)
    model = LanguageModel(embedding, cell, depth, auxiliary_weight=0.5, regularisation=regularisation).train()
    read = tokens(3, 6)
    output = model(read, read)
    raw = model.read(model.embedded(read), None)
    mask = (output.hidden / raw.hidden_BLD).round(decimals=3)
    losses = [model.loss(state * mask, read) for state in raw.states]
    expected = output.hidden.square().mean() + 0.5 * sum(losses) / len(losses)
    assert len(losses) == 2
    torch.testing.assert_close(output.penalty, expected)


def test_impossible_numbers_are_named() -> None:
    with pytest.raises(ValueError, match=r"input_dropout must be at least 0 and below 1, found 1\.0"):
        Regularisation(input_dropout=1.0)
    with pytest.raises(ValueError, match=r"slowness_penalty must be at least 0, found -1"):
        Regularisation(slowness_penalty=-1.0)
    with pytest.raises(ValueError, match="activation_penalty must be at least 0 and finite, found nan"):
        Regularisation(activation_penalty=float("nan"))
