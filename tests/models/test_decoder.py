"""Texts that are decoded together from different places: each as it would be alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import equilibria as eq
from equilibria.cells import Cache, Cell, ContractiveCell, TransformerXLCell, TrellisCell
from equilibria.depths import Adaptive, Depth, Equilibrium, ExitOnResidual, UnrolledDepth
from equilibria.models import LanguageModel
from equilibria.models.base import TokenModel
from equilibria.nn import TiedEmbedding
from equilibria.paper.baselines import LSTMLayer, SequenceModel
from equilibria.paper.halting import Halting

V, D = 29, 16
SOLVED = Equilibrium(eval_solver=eq.Picard(tol=1e-3, max_evaluations=8, scope="prefix"))


def model(cell: Cell, depth: Depth = SOLVED) -> LanguageModel:
    built = LanguageModel(TiedEmbedding(V, D), cell, depth, 64).eval()
    with torch.no_grad():
        for parameter in built.cell.parameters():
            parameter.mul_(0.6)
    return built


def models() -> dict[str, TokenModel]:
    torch.manual_seed(0)
    lstm = SequenceModel(TiedEmbedding(V, 8), [LSTMLayer(8, 8)], memory_length=0).eval()
    return {
        "rotary": model(ContractiveCell(D, 2, 24)),
        "linear": model(ContractiveCell(D, 2, 24, blocks=2, positions="linear")),
        "strict": model(ContractiveCell(D, 2, 24, strict=True)),
        "post norm": model(TransformerXLCell(D, 2, 24, affine=True)),
        "windowed": model(TransformerXLCell(D, 2, 24, affine=True, window=5)),
        "trellis": model(TrellisCell(D, 8, dilation=2)),
        "unrolled": model(ContractiveCell(D, 2, 24), UnrolledDepth(4)),
        "adaptive": model(ContractiveCell(D, 2, 24), Adaptive(ExitOnResidual(1e-3), max_evaluations=8, tile=3)),
        "lstm": lstm,
        "halting": model(ContractiveCell(D, 2, 24, injection=False), Halting(D)),
    }


def text(length: int, seed: int) -> Tensor:
    return torch.randint(V, (1, length), generator=torch.Generator().manual_seed(seed))


def alone(built: TokenModel, tokens: Tensor, prompt: int, window: int) -> Tensor:
    """The logits after a prompt that is read at once and the tokens behind it."""
    where = built.begin(tokens[:, :prompt], window)
    for token in tokens[:, prompt:].unbind(1):
        where = where.read(token)
    return where.logits_BV[0]


@pytest.mark.parametrize("window", [64, 9])
@pytest.mark.parametrize("name", models())
@torch.no_grad()
def test_texts_join_and_leave_at_any_time(name: str, window: int) -> None:
    """Texts of 3, 11 and 6 tokens, the last in two copies; each time all read on, then other rows go on."""
    built = models()[name]
    texts = [text(3, 1), text(11, 2)]
    both = built.begin(texts[0], window).gathered([(built.begin(one, window), torch.tensor([0])) for one in texts])
    texts = [torch.cat([one, text(1, seed)], dim=1) for seed, one in enumerate(texts, start=3)]
    both = both.read(torch.cat([one[0, -1:] for one in texts]))
    third = text(6, 5)
    three = both.gathered([(built.begin(third, window), torch.tensor([0, 0])), (both, torch.tensor([1, 0]))])
    texts = [third, third, texts[1], texts[0]]
    for step in range(3):
        texts = [torch.cat([one, text(1, 10 * step + row)], dim=1) for row, one in enumerate(texts)]
        three = three.read(torch.cat([one[0, -1:] for one in texts]))
    last = three.gathered([(three, torch.tensor([3, 1]))])  # the longest has left
    texts = [torch.cat([texts[row], text(1, 40 + row)], dim=1) for row in (3, 1)]
    last = last.read(torch.cat([one[0, -1:] for one in texts]))
    for row, (one, prompt) in enumerate(zip(texts, (3, 6), strict=True)):
        torch.testing.assert_close(last.logits_BV[row], alone(built, one, prompt, window), rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_cache_of_few_rows_is_no_longer_than_they_are() -> None:
    built = models()["rotary"]
    long, short = built.prefill(text(40, 1)).cache, built.prefill(text(4, 2)).cache
    assert isinstance(long, Cache)
    assert isinstance(short, Cache)
    both = Cache.gathered([(long, torch.tensor([0])), (short, torch.tensor([0]))])
    assert both.length == 40
    assert both.select(torch.tensor([1])).length == 4
    with pytest.raises(ValueError, match="one model with one limit"):
        Cache.gathered([(long, torch.tensor([0])), (Cache(short.entries, 3), torch.tensor([0]))])


@torch.no_grad()
def test_neighbours_change_nothing_at_all() -> None:
    """In batches of one shape, to the last bit, at few evaluations too."""
    torch.manual_seed(0)
    loose = Equilibrium(eval_solver=eq.Picard(tol=1e-3, max_evaluations=6, scope="prefix"))
    built, found = model(ContractiveCell(D, 2, 24), loose), []
    for seed in (1, 2):
        parts = [(built.begin(one), torch.tensor([0])) for one in (text(5, 0), text(11, seed), text(8, seed + 7))]
        where = parts[0][0].gathered(parts)
        for step in range(3):
            where = where.read(torch.tensor([step, seed, 3 * seed]))
        found.append(where.logits_BV[0])
    assert torch.equal(found[0], found[1])


def test_a_text_is_written_at_the_depth_of_the_call() -> None:
    built, deep = model(ContractiveCell(D, 2, 12), UnrolledDepth(2)), UnrolledDepth(5)
    twin = LanguageModel(built.embedding, built.cell, deep).eval()
    prompts = torch.arange(8).view(2, 4) % 7
    found, expected = built.generate(prompts, 6, seed=3, depth=deep), twin.generate(prompts, 6, seed=3)
    assert torch.equal(found, expected)
    assert len(built.new_cache(depth=deep).entries) == len(twin.new_cache().entries)
    assert built.depth == UnrolledDepth(2)
    halting = Halting(D)
    assert torch.equal(built.generate(prompts[:, :2], 2, seed=3, depth=halting)[:, :2], prompts[:, :2])
    with pytest.raises(ValueError, match="a SequenceModel has no depth to choose"):
        SequenceModel(TiedEmbedding(7, 8), [LSTMLayer(8, 8)]).eval().generate(prompts, 1, depth=deep)
