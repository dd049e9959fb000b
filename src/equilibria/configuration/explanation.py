"""One line for what is wrong with a flag or a key, what was expected, and the nearest right one."""

import difflib
import json
from collections.abc import Iterable
from dataclasses import MISSING, fields, is_dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from cyclopts import (
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    Token,
    UnknownOptionError,
    UnusedCliTokensError,
    ValidationError,
)
from cyclopts.argument import Argument

_EXPECTED = {int: "an integer", float: "a number", bool: "true or false", str: "text", Path: "a path"}


def explain(problem: CycloptsError) -> str:
    """What is wrong with the command line or the recipe file, in one line; it begins with where."""
    match problem:
        case UnknownOptionError(token=token, argument_collection=arguments):
            names = (name for argument in arguments for name in argument.names)
            return f"{_place(token)}: no such {_noun(token)}; the nearest is {_nearest(token, names)}"
        case CoercionError(argument=Argument() as argument):
            token = problem.token or argument.tokens[0]
            return f"{_place(token)} = {_quoted(token)}: expected {_expected(argument, token)}"
        case ValidationError(argument=Argument() as argument) if argument.tokens:
            limit = problem.exception_message.removeprefix("Must be ").rstrip(".")
            token = argument.tokens[0]
            return f"{_place(token)} = {_quoted(token)}: expected {_expected(argument, token)} {limit}"
        case MissingArgumentError(argument=Argument() as argument):
            if problem.keyword:
                return f"{problem.keyword} has no value: expected {_expected(argument, None)}"
            if argument.keys:
                key = _required(argument)
                return f"{_dotted(key)} is missing; give it in the recipe or as {key}"
            return f"{argument.name} is missing: expected {_expected(argument, None)}"
        case UnusedCliTokensError(unused_tokens=[unexpected, *_]):
            return f"{unexpected}: unexpected argument; see --help"
    problem.verbose = False
    return " ".join(str(problem).split())


def _place(token: Token) -> str:
    """`--section.key` for a flag, `FILE: section.key` for a key in a file."""
    name = token.keyword or token.value
    return name if _is_flag(token) else f"{token.source}: {_dotted(name)}"


def _is_flag(token: Token) -> bool:
    return token.source in ("", "cli")


def _noun(token: Token) -> str:
    return "option" if _is_flag(token) else "key"


def _dotted(name: str) -> str:
    """A flag or cyclopts' name of a key in a file, `[section][key]`, as `section.key`."""
    return name.strip("[]").replace("][", ".").removeprefix("--")


def _nearest(token: Token, names: Iterable[str]) -> str:
    by_key = {_dotted(name): name for name in names}
    found = _dotted(token.keyword or token.value).split("=")[0]
    nearest = difflib.get_close_matches(found, by_key, n=1, cutoff=0.0)[0]
    return by_key[nearest] if _is_flag(token) else nearest


def _quoted(token: Token) -> str:
    return json.dumps(token.value, ensure_ascii=False) if isinstance(token.value, str) else repr(token.value)


def _required(argument: Argument) -> str:
    """The name of an argument that was not given; for a section, that of its first key without a default."""
    if not is_dataclass(argument.hint):
        return argument.name
    keys = (entry.name for entry in fields(argument.hint) if entry.default is entry.default_factory is MISSING)
    return ".".join((argument.name, *islice(keys, 1)))


def _expected(argument: Argument, token: Token | None) -> str:
    if is_dataclass(argument.hint):
        return f"a section, [{_dotted(argument.name)}] with its keys"
    choices = [
        choice for hint in _alternatives(argument.hint) if get_origin(hint) is Literal for choice in get_args(hint)
    ]
    if choices:
        listed = "one of " + ", ".join(f'"{choice}"' for choice in choices)
        nearest = difflib.get_close_matches(token.value, choices, n=1, cutoff=0.5) if token else []
        return listed + "".join(f'; did you mean "{choice}"?' for choice in nearest)
    return next((_EXPECTED[hint] for hint in _alternatives(argument.hint) if hint in _EXPECTED), "a value")


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or of a tuple's elements, without what is annotated; else the type itself."""
    members = (hint,) if get_origin(hint) is Literal else get_args(hint) or (hint,)
    return tuple(get_args(member)[0] if get_origin(member) is Annotated else member for member in members)
