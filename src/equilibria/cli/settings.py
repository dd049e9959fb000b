"""Types of flags."""

from collections.abc import Callable, Sequence
from inspect import Parameter as Argument
from inspect import signature
from typing import Annotated, get_args

from cyclopts import Parameter, Token
from cyclopts.validators import Number

from equilibria.configuration.reading import SHORT_KEYS
from equilibria.configuration.recipe import Recipe
from equilibria.errors import UserError, nearest


def whole(kind: type, tokens: Sequence[Token]) -> int:
    """A whole number as it is written: 1.5 is none, which cyclopts would round."""
    del kind
    return int(tokens[0].value)


Count = Annotated[int, Parameter(validator=Number(gte=1), converter=whole)]
Natural = Annotated[int, Parameter(validator=Number(gte=0), converter=whole)]
Positive = Annotated[float, Parameter(validator=Number(gt=0))]

Settings = Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]
"""A part of a flag of the recipe: whatever a command does not know itself is a key of the recipe and its value."""


RECIPE_KEYS = ("unset", *SHORT_KEYS, *Recipe.__dataclass_fields__)
"""What flags of a recipe begin with."""


def check_flags(command: Callable[..., int], flags: Sequence[str], keys: Sequence[str] = RECIPE_KEYS) -> None:
    """Raises a UserError for a flag that is none of some keys, but near to a flag of the command itself."""
    every = signature(command).parameters.values()
    own = [_flag(argument) for argument in every if argument.kind == Argument.KEYWORD_ONLY]
    for flag in flags:
        name = flag.partition("=")[0]
        if not name.startswith("--") or "." in name or name[2:].replace("-", "_") in keys:
            continue
        close = nearest(name, [*keys, *own])
        if close in own:
            raise UserError(f"{name}: no such flag; the nearest is {close}")


def _flag(argument: Argument) -> str:
    """The name of a flag, which may be another than that of its argument."""
    given = [meta.name for meta in get_args(argument.annotation) if isinstance(meta, Parameter) and meta.name]
    return next(iter(given[0])) if given else f"--{argument.name.replace('_', '-')}"
