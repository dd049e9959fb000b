"""Quartiles, of measurements and of ratios."""

import pytest

from equilibria.measuring.spread import Quartiles, ratios


def test_quartiles() -> None:
    assert Quartiles.of([5.0, 1.0, 3.0]) == Quartiles(3.0, 1.0, 5.0)
    assert Quartiles.of([7.0]) == Quartiles(7.0, 7.0, 7.0)
    assert ratios([2.0, 30.0, 4.0], [1.0, 10.0, 4.0]).median == 2.0
    with pytest.raises(ValueError, match="longer"):
        ratios([1.0], [1.0, 2.0])
