"""Sampling: what stays in the draw, and in which proportion."""

from __future__ import annotations

import torch

from equilibria.models.sampling import Sampling


def drawn(sampling: Sampling, probabilities: list[float], count: int = 4000) -> torch.Tensor:
    logits = torch.tensor(probabilities).log().expand(count, -1)
    tokens = sampling.draw(logits, torch.Generator().manual_seed(0))
    return torch.bincount(tokens, minlength=len(probabilities)) / count


def test_proportions_follow_the_softmax():
    torch.testing.assert_close(drawn(Sampling(), [0.5, 0.3, 0.2]), torch.tensor([0.5, 0.3, 0.2]), atol=0.03, rtol=0)


def test_temperature_sharpens():
    expected = torch.tensor([0.25, 0.09, 0.04]) / 0.38
    torch.testing.assert_close(drawn(Sampling(temperature=0.5), [0.5, 0.3, 0.2]), expected, atol=0.03, rtol=0)


def test_top_k_keeps_the_most_likely():
    shares = drawn(Sampling(top_k=2), [0.5, 0.3, 0.2])
    assert shares[2] == 0
    assert abs(float(shares[0]) - 0.625) < 0.03


def test_top_p_keeps_the_smallest_set_that_holds_the_share():
    assert (drawn(Sampling(top_p=0.5), [0.5, 0.3, 0.2]) > 0).tolist() == [True, False, False]
    assert (drawn(Sampling(top_p=0.6), [0.5, 0.3, 0.2]) > 0).tolist() == [True, True, False]
    assert (drawn(Sampling(top_p=1.0), [0.5, 0.3, 0.2]) > 0).tolist() == [True, True, True]
