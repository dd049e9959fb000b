"""Numbers outside their range, and what is no number, are named."""

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch

import equilibria as eq
from equilibria import ranges

CHECKS = [
    lambda **values: ranges.at_least(0, **values),
    lambda **values: ranges.at_most(1, **values),
    lambda **values: ranges.layers(0, **values),
    lambda **values: ranges.above(-1, **values),
    ranges.probability,
    ranges.share,
]


@pytest.mark.parametrize("check", CHECKS)
def test_numbers_of_any_kind_and_none_are_taken_and_what_is_none_is_named(check: Callable[..., None]) -> None:
    for number in (0.5, np.float32(0.5), torch.tensor(0.5)):
        check(size=number)
    check(size=None)
    for found in ("1e-3", [1], eq.Anderson):
        with pytest.raises(TypeError, match=re.escape(f"size must be a number, found {found!r}")):
            check(size=found)


@pytest.mark.parametrize("found", ["1e-3", (1e-3,)])
def test_a_solver_says_which_of_its_numbers_is_none(found: object) -> None:
    with pytest.raises(TypeError, match="tol must be a number, found"):
        eq.Anderson(tol=found)  # pyright: ignore[reportArgumentType]
