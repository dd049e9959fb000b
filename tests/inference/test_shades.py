"""Shades tell the evaluations at hand apart, whatever their size."""

from hypothesis import given
from hypothesis import strategies as st

from equilibria.inference.shades import LEVELS, Shades

COUNTS = st.lists(st.integers(1, 300), min_size=1, max_size=200)


def test_eight_to_eleven_are_four_shades() -> None:
    shades = Shades.of([8, 9, 10, 11] * 10)
    assert [shades.level(number) for number in (8, 9, 10, 11)] == [0, 2, 5, 7]


def test_one_slow_token_leaves_shades_to_the_others() -> None:
    counts = [*range(4, 12)] * 10 + [500]
    assert {Shades.of(counts).level(number) for number in counts} == set(range(LEVELS))


def test_one_number_is_light_and_what_is_beyond_it_dark() -> None:
    shades = Shades.of([7] * 40)
    assert [shades.level(number) for number in (6, 7, 8)] == [0, 0, LEVELS - 1]


@given(COUNTS)
def test_more_is_never_lighter(counts: list[int]) -> None:
    shades = Shades.of(counts)
    levels = [shades.level(number) for number in sorted(counts)]
    assert levels == sorted(levels)
    assert set(levels) <= set(range(LEVELS))


@given(COUNTS)
def test_a_legend_has_every_number_once(counts: list[int]) -> None:
    shades = Shades.of(counts)
    legend = shades.legend(counts)
    assert abs(sum(shade.share for shade in legend) - 1) < 1e-9
    for shade in legend:
        inside = [number for number in counts if shade.least <= number <= shade.most]
        assert {shades.level(number) for number in inside} == {shade.level}
        assert shade.share == len(inside) / len(counts)
