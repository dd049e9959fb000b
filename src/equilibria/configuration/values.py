"""The kinds of numbers that a recipe's fields hold; a value outside its kind is an error that says so."""

from collections.abc import Sequence
from math import inf
from typing import Annotated

from cyclopts import Parameter, Token
from cyclopts.validators import Number


def _integer(_: type, tokens: Sequence[Token]) -> int:
    """An integer and nothing else: 6.5 and 7.0 are errors, not 6 and 7."""
    return int(tokens[0].value)


Count = Annotated[int, Parameter(validator=Number(gte=1), converter=_integer)]
MOST_LAYERS = 1000
"""Layers of one kind that a model is built of at most: each takes time to build, before anything else is known."""
Layers = Annotated[int, Parameter(validator=Number(gte=1, lte=MOST_LAYERS), converter=_integer)]
LayersOrNone = Annotated[int, Parameter(validator=Number(gte=0, lte=MOST_LAYERS), converter=_integer)]
Natural = Annotated[int, Parameter(validator=Number(gte=0), converter=_integer)]
Positive = Annotated[float, Parameter(validator=Number(gt=0, lt=inf))]
NonNegative = Annotated[float, Parameter(validator=Number(gte=0, lt=inf))]
Fraction = Annotated[float, Parameter(validator=Number(gte=0, lt=1))]
Ratio = Annotated[float, Parameter(validator=Number(gt=0, lte=1))]
