"""Checks of arguments: one sentence for a number outside its range, or for what is of another kind. None is a
number in every range."""

from collections.abc import Iterator, Mapping
from math import inf, isfinite
from types import UnionType
from typing import Any, get_args

from equilibria.errors import nearest

MOST_LAYERS = 1000
"""Layers of one kind that a model is built of, at most."""


def _given(values: Mapping[str, float | None]) -> Iterator[tuple[str, float]]:
    """Those that are not None; raises TypeError for what is no number."""
    for name, value in values.items():
        if value is None:
            continue
        if not hasattr(value, "__float__"):
            raise TypeError(f"{name} must be a number, found {value!r}")
        yield name, value


def _check_whole(values: Mapping[str, float | None]) -> None:
    for name, value in _given(values):
        if not hasattr(value, "__index__"):
            raise TypeError(f"{name} must be a whole number, found {value}")


def at_least(least: float, /, **values: float | None) -> None:
    """Raises ValueError for a value below `least`, or one that is infinite or NaN."""
    for name, value in _given(values):
        if not least <= value < inf:
            finite = "" if isfinite(value) else " and finite"
            raise ValueError(f"{name} must be at least {least}{finite}, found {value}")


def whole(least: int, /, **values: int | None) -> None:
    """Raises TypeError for what is not a whole number, ValueError for one below `least`."""
    _check_whole(values)
    at_least(least, **values)


def at_most(most: float, /, **values: float | None) -> None:
    """Raises ValueError for a value above `most`."""
    for name, value in _given(values):
        if value > most:
            raise ValueError(f"{name} must be at most {most}, found {value}")


def layers(least: int = 1, **values: int) -> None:
    """Raises TypeError for what is not a whole number, ValueError for one that is not from `least` to 1000: each
    layer takes time to build."""
    _check_whole(values)
    for name, value in _given(values):
        if not least <= value <= MOST_LAYERS:
            raise ValueError(f"{name} must be from {least} to {MOST_LAYERS}, found {value}")


def above(bound: float, /, **values: float | None) -> None:
    """Raises ValueError for a value of at most `bound`, or one that is infinite or NaN."""
    for name, value in _given(values):
        if not bound < value < inf:
            raise ValueError(f"{name} must be above {bound} and finite, found {value}")


def probability(**values: float | None) -> None:
    """Raises ValueError for a value that is not at least 0 and below 1."""
    for name, value in _given(values):
        if not 0 <= value < 1:
            raise ValueError(f"{name} must be at least 0 and below 1, found {value}")


def share(**values: float | None) -> None:
    """Raises ValueError for a value that is not above 0 and at most 1."""
    for name, value in _given(values):
        if not 0 < value <= 1:
            raise ValueError(f"{name} must be above 0 and at most 1, found {value}")


def one_of(choices: Any, **values: object) -> None:
    """Raises ValueError for a value that is none of a `Literal`'s."""
    known = get_args(choices)
    for name, value in values.items():
        if value is not None and value not in known:
            near = nearest(value, known) if isinstance(value, str) else None
            hint = "" if near is None else f"; did you mean {near!r}?"
            raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, found {value!r}{hint}")


def instance(kind: type | UnionType, example: str, /, **values: object) -> None:
    """Raises TypeError for a value that is not an object of a class; `example` is how one is made."""
    for name, value in values.items():
        if not isinstance(value, kind):
            raise TypeError(f"{name} must be an object such as {example}; {found(value)}")


def found(value: object) -> str:
    """What was found in place of an object, for a message."""
    if isinstance(value, type):
        return f"found the class {value.__name__}; make one: {value.__name__}()"
    return f"found {value!r}"
