"""Numbers in twice the digits, against Python's fractions."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from equilibria.gradients.compensated import scale_and_add, subtract_and_divide


def exact(pair: tuple[torch.Tensor, torch.Tensor]) -> list[Fraction]:
    return [Fraction(high) + Fraction(low) for high, low in zip(*(part.tolist() for part in pair), strict=True)]


@pytest.mark.parametrize(("dtype", "digits"), [(torch.float64, 104), (torch.float32, 46)])
def test_steps_and_their_inverse_are_exact_to_twice_the_digits(dtype: torch.dtype, digits: int):
    generator = torch.Generator().manual_seed(0)
    high, w = (10.0 ** torch.linspace(-8, 8, 50, dtype=dtype) * torch.randn(50, generator=generator) for _ in "ab")
    high, w = high.to(dtype), w.flip(0).to(dtype)
    low = high * torch.finfo(dtype).eps / 4 * torch.rand(50, generator=generator).to(dtype)
    factor = float(torch.tensor(0.2, dtype=dtype))
    found = scale_and_add((high, low), factor, w)
    assert bool((found[0] + found[1] == found[0]).all())  # `high` is the sum rounded
    back = subtract_and_divide(found, factor, w)
    for x, y, z, again in zip(exact((high, low)), map(Fraction, w.tolist()), exact(found), exact(back), strict=True):
        scale = max(abs(x), abs(y))
        assert abs(Fraction(factor) * x + y - z) <= scale / 2**digits
        assert abs(again - x) <= scale / 2**digits * 8


def test_what_is_not_finite_stays_so():
    x = torch.tensor([torch.inf, torch.nan, 1.0], dtype=torch.float64)
    high, _ = scale_and_add((x, torch.zeros_like(x)), 0.5, torch.zeros_like(x))
    assert torch.isfinite(high).tolist() == [False, False, True]
