"""Sampling: what stays in the draw and in which proportion, against plain formulas; and that rows are drawn apart."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from equilibria.models.sampling import Sampler, Sampling, _holding

LOGITS = st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=12)
SAMPLINGS = st.builds(
    Sampling,
    temperature=st.floats(0.05, 4),
    top_k=st.none() | st.integers(1, 12),
    top_p=st.none() | st.floats(0.01, 1),
    min_p=st.none() | st.floats(0, 1),
    repetition_penalty=st.floats(0.3, 3),
    presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2),
)


def plain(sampling: Sampling, logits: list[float], read: list[int], written: list[int]) -> tuple[list[float], float]:
    """The probabilities in float64, token by token, and how near a token is to being in or out."""
    logits = list(logits)
    for token, (in_prompt, since) in enumerate(zip(read, written, strict=True)):
        if in_prompt or since:
            factor = sampling.repetition_penalty
            logits[token] = logits[token] / factor if logits[token] > 0 else logits[token] * factor
        logits[token] -= since * sampling.frequency_penalty + (since > 0) * sampling.presence_penalty
    weights = [math.exp((logit - max(logits)) / sampling.temperature) for logit in logits]
    margin = min(larger - smaller for smaller, larger in pairwise(sorted(logits)))
    if sampling.top_k is not None and sampling.top_k < len(logits):
        ordered = sorted(logits, reverse=True)
        weights = [w if logit >= ordered[sampling.top_k - 1] else 0.0 for w, logit in zip(weights, logits, strict=True)]
    shares = [w / sum(weights) for w in weights]
    kept = [True] * len(shares)
    if sampling.top_p is not None and sampling.top_p < 1:
        before, order = 0.0, sorted(range(len(shares)), key=lambda token: -shares[token])
        for token in order:
            kept[token] = before < sampling.top_p
            margin = min(margin, abs(before - sampling.top_p))
            before += shares[token]
    if sampling.min_p:
        least = sampling.min_p * max(shares)
        margin = min(margin, 1.0, *(abs(share - least) for share in shares if share < max(shares)))
        kept = [keep and share >= least for keep, share in zip(kept, shares, strict=True)]
    left = [share * keep for share, keep in zip(shares, kept, strict=True)]
    return [share / sum(left) for share in left], margin


@settings(deadline=None, max_examples=200)
@given(LOGITS, SAMPLINGS, st.data())
def test_probabilities_follow_the_plain_formulas(logits: list[float], sampling: Sampling, data: st.DataObject) -> None:
    counts = st.lists(st.integers(0, 3), min_size=len(logits), max_size=len(logits))
    read, written = data.draw(counts), data.draw(counts)
    expected, margin = plain(sampling, logits, read, written)
    assume(margin > 1e-4)  # or rounding decides what stays
    found = sampling.probabilities(torch.tensor([logits]), torch.tensor([read]), torch.tensor([written]))
    torch.testing.assert_close(found[0].double(), torch.tensor(expected).double(), atol=1e-4, rtol=0)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**31), st.floats(0.01, 0.999), st.floats(0.1, 3))
def test_the_share_is_found_among_few_candidates_or_all(seed: int, share: float, spread: float) -> None:
    logits_BV = spread * torch.randn(4, 60, generator=torch.Generator().manual_seed(seed))
    shares_BV = logits_BV.softmax(-1)
    assert torch.equal(_holding(share, shares_BV, 5), _holding(share, shares_BV, 60))


def drawn(sampling: Sampling, probabilities: list[float], count: int = 4000) -> torch.Tensor:
    """Shares of the tokens among draws by one row after another."""
    sampler = Sampler(sampling, 0, [], len(probabilities))
    logits = torch.tensor([probabilities]).log()
    tokens = torch.tensor([Sampler.draw([sampler], logits)[0] for _ in range(count)])
    return torch.bincount(tokens, minlength=len(probabilities)) / count


def test_draws_come_in_their_proportions() -> None:
    torch.testing.assert_close(drawn(Sampling(), [0.5, 0.3, 0.2]), torch.tensor([0.5, 0.3, 0.2]), atol=0.03, rtol=0)
    shares = drawn(Sampling(top_k=2), [0.5, 0.3, 0.2], 1000)
    assert shares[2] == 0
    assert drawn(Sampling(temperature=0), [0.3, 0.5, 0.2], 10).tolist() == [0, 1, 0]
    assert drawn(Sampling(temperature=1e-30), [0.3, 0.5, 0.2], 10).tolist() == [0, 1, 0]
    assert drawn(Sampling(top_p=1e-300), [0.3, 0.5, 0.2], 10).tolist() == [0, 1, 0]


def test_what_was_written_is_counted() -> None:
    logits = torch.tensor([[3.0, 2.9, 2.8]])
    greedy = Sampler(Sampling(temperature=0, frequency_penalty=0.25), 0, [0], 3)
    assert [Sampler.draw([greedy], logits)[0] for _ in range(6)] == [0, 1, 2, 0, 1, 2]
    read = Sampler(Sampling(temperature=0, repetition_penalty=1.1), 0, [0, 1], 3)
    assert Sampler.draw([read], logits) == [2]


def test_a_row_is_drawn_as_it_is_alone() -> None:
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(3))
    samplings = [Sampling(), Sampling(top_p=0.7), Sampling(0.5, 7), Sampling(), Sampling(0.0)]

    def samplers() -> list[Sampler]:
        return [Sampler(sampling, row, [1, 2], 40) for row, sampling in enumerate(samplings)]

    together = samplers()
    first, second = Sampler.draw(together, logits), Sampler.draw(together, logits.flip(1))
    for row, sampler in enumerate(samplers()):
        assert Sampler.draw([sampler], logits[row : row + 1]) == [first[row]]
        assert Sampler.draw([sampler], logits[row : row + 1].flip(1)) == [second[row]]


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"top_k": 0},
        {"top_p": -0.1},
        {"min_p": 1.5},
        {"repetition_penalty": 0.0},
        {"presence_penalty": math.inf},
        {"frequency_penalty": math.nan},
    ],
)
def test_impossible_numbers_are_named(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        Sampling(**wrong)  # pyright: ignore[reportArgumentType]


def test_of_logits_that_are_not_finite_nothing_is_drawn() -> None:
    samplers = [Sampler(Sampling(0.0), 0, [], 2) for _ in range(3)]
    logits = torch.tensor([[0.0, 1.0], [0.0, math.nan], [math.inf, 0.0]])
    assert Sampler.draw(samplers, logits) == [1, -1, -1]
    assert [sampler.token for sampler in samplers] == [1, -1, -1]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1e-46),
        Sampling(5e-324, top_p=0.5),
        Sampling(1e-38, min_p=0.1),
        Sampling(1.0, repetition_penalty=1e-46),
        Sampling(1.0, repetition_penalty=1.7e308),
        Sampling(1.0, repetition_penalty=5e-324, frequency_penalty=1.7e308),
        Sampling(0.0, presence_penalty=-1.7e308, frequency_penalty=1.7e308),
    ],
    ids=repr,
)
def test_numbers_that_overflow_still_draw_a_token(sampling: Sampling) -> None:
    logits_1V = torch.tensor([[0.0, -3.0, 7.0, 7.0]])
    sampler = Sampler(sampling, 0, [0, 1, 2], 4)
    for _ in range(5):
        (token,) = Sampler.draw([sampler], logits_1V)
        assert 0 <= token < 4
    counts_1V = torch.tensor([[1, 1, 1, 0]])
    shares_1V = sampling.probabilities(logits_1V, counts_1V, 3 * counts_1V)
    assert shares_1V.dtype == torch.float32
    torch.testing.assert_close(shares_1V.sum(), torch.tensor(1.0))
