"""Numbers outside their range, and what is no number, are named."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import equilibria as eq
from equilibria import ranges

LOOSE: Any = eq  # to a checker, what is given here is wrong
CHECKS = [
    lambda **values: ranges.at_least(0, **values),
    lambda **values: ranges.at_most(1, **values),
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


@pytest.mark.parametrize("check", [ranges.whole, ranges.layers])
def test_counts_are_whole_numbers(check: Callable[..., None]) -> None:
    for number in (1, np.int64(2), torch.tensor(3), True, None):
        check(1, size=number)
    with pytest.raises(TypeError, match=re.escape("size must be a whole number, found 2.5")):
        check(1, size=2.5)
    with pytest.raises(ValueError, match=r"size must be .* 1"):
        check(1, size=0)


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: LOOSE.Picard(max_evaluations=1.5), "max_evaluations must be a whole number, found 1.5"),
        (lambda: LOOSE.Phantom(steps=2.0), "steps must be a whole number, found 2.0"),
        (
            lambda: LOOSE.Anderson(fallback="bro"),
            "fallback must be an object such as NewtonKrylov(); found 'bro",
        ),
        (
            lambda: LOOSE.Anderson(draft=eq.Draft),
            "draft must be an object such as Draft(); found the class Draft",
        ),
        (lambda: LOOSE.Implicit("gmres"), "solver must be an object such as GMRES(); found 'gmres'"),
        (lambda: LOOSE.Implicit(eq.GMRES), "found the class GMRES; make one: GMRES()"),
        (lambda: LOOSE.Implicit(memory=True), "memory must be an object such as AdjointMemory(); found True"),
        (lambda: LOOSE.Guarded(1e-3), "solver must be an object such as GMRES(); found 0.001"),
        (lambda: LOOSE.Guarded(otherwise=3), "otherwise must be an object such as Neumann(); found 3"),
        (lambda: LOOSE.Switching(3), "converged must be an object such as Implicit(); found 3"),
        (lambda: LOOSE.Switching(otherwise=3), "otherwise must be an object such as Phantom(steps=5); found 3"),
        (lambda: LOOSE.ReuseInverse(refine=5), "refine must be an object such as GMRES(max_evaluations=5); found 5"),
        (lambda: LOOSE.train({}), 'recipe must be an object such as eq.read_recipe("demo"), or its name; found {}'),
        (lambda: LOOSE.generate("demo", sampling=0.5), "sampling must be an object such as Sampling(temperature=0.8)"),
        (lambda: LOOSE.generate("demo", 5), "prompts must be a text or a list of texts; found 5"),
        (lambda: LOOSE.generate("demo", [5]), "prompts must be a text or a list of texts; found [5]"),
    ],
)
def test_what_is_of_another_kind_is_named_with_what_is_wanted(build: Callable[[], object], named: str) -> None:
    with pytest.raises(TypeError, match=re.escape(named)):
        build()


@pytest.mark.parametrize("found", ["1e-3", (1e-3,)])
def test_a_solver_says_which_of_its_numbers_is_none(found: object) -> None:
    with pytest.raises(TypeError, match="tol must be a number, found"):
        eq.Anderson(tol=found)  # pyright: ignore[reportArgumentType]


def test_a_word_that_is_none_of_those_known_is_named_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"scope must be one of 'sample', .* found 'samples'; did you mean 'sample'\?"):
        LOOSE.Picard(scope="samples")
    with pytest.raises(ValueError, match=r"found 7$"):
        LOOSE.Picard(scope=7)
