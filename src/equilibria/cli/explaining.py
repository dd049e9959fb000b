"""What is wrong with a command line, in one line."""

import json
from collections.abc import Callable, Sequence
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import cyclopts
from cyclopts.argument import Argument

from equilibria.errors import nearest

_EXPECTED = {int: "an integer", float: "a number", bool: "true or false", str: "text", Path: "a path"}


def explain(problem: cyclopts.CycloptsError) -> str:
    """What is wrong, what was expected, and the nearest right flag."""
    match problem:
        case cyclopts.UnknownCommandError(unused_tokens=[given, *_], app=app) if app is not None:
            commands = [name for name in app if not name.startswith("-")]
            if given == "help" and (asked := [word for word in problem.root_input_tokens or () if word in commands]):
                return f"help: no such command; give equilibria {asked[0]} --help"
            flags = {"help": "--help", "version": "--version", "v": "--version"}
            close = nearest(given.lstrip("-"), [*commands, *flags])
            instead = f"the nearest is {flags.get(close, close)}" if close else f"there are {', '.join(commands)}"
            return f"{given}: no such command; {instead}"
        case cyclopts.UnknownOptionError(token=token, argument_collection=arguments):
            return _unknown(token.keyword or token.value, [name for argument in arguments for name in argument.names])
        case cyclopts.CoercionError(argument=Argument() as argument):
            return _unexpected(argument, problem.token or argument.tokens[0])
        case cyclopts.ValidationError(argument=Argument() as argument) if argument.tokens:
            limit = problem.exception_message.removeprefix("Must be ").rstrip(".")
            return f"{_unexpected(argument, argument.tokens[0])} {limit}"
        case cyclopts.MissingArgumentError(argument=Argument() as argument):
            lacking = f"{problem.keyword} has no value" if problem.keyword else f"{argument.name} is missing"
            command = " ".join(("equilibria", *(problem.command_chain or ())))
            needed = _needed(problem.target)
            takes = f"it takes {' '.join(needed)}, " if len(needed) > 1 else ""
            usage = "" if problem.keyword else f"; {takes}see {command} --help"
            return f"{lacking}: expected {_expected(argument, None)}{usage}"
        case cyclopts.UnusedCliTokensError(unused_tokens=[unexpected, *_]):
            prompt = ["a prompt is given with -p, and so on;"] if "generate" in (problem.command_chain or ()) else []
            command = " ".join(("equilibria", *(problem.command_chain or ())))
            return " ".join((f"{unexpected}: unexpected argument;", *prompt, f"see {command} --help"))
    problem.verbose = False
    return " ".join(str(problem).split())


def _needed(command: Callable[..., Any] | None) -> list[str]:
    """The arguments and flags that a command cannot do without."""
    every = [] if command is None else signature(command).parameters.values()
    needed = [one for one in every if one.default is one.empty and one.kind is not one.VAR_POSITIONAL]
    return [
        f"--{one.name.replace('_', '-')} VALUE" if one.kind is one.KEYWORD_ONLY else one.name.upper() for one in needed
    ]


def _unknown(given: str, names: Sequence[str]) -> str:
    """About an option that a command does not have."""
    arguments, flags = ([name for name in names if name.startswith("-") is flag] for flag in (False, True))
    if place := nearest(given, {*arguments} - {"SETTINGS", "FLAGS"}):
        return f"{given}: give {place} alone, without a flag before it"
    if given.startswith("--help"):
        return f"{given}: no such option; the nearest is --help"
    if {"SETTINGS", "FLAGS"} & {*arguments[1:]}:
        return f"{given}: {arguments[0]} comes first, and flags after it"
    close = nearest(given, flags)
    return f"{given}: no such option; {f'the nearest is {close}' if close else _there_are(flags)}"


def _there_are(flags: Sequence[str]) -> str:
    """The long options among some names, without those that only negate another."""
    long = [flag for flag in dict.fromkeys(flags) if flag.startswith("--") and flag not in ("--help", "--version")]
    known = [flag for flag in long if not (flag.startswith("--no-") and f"--{flag.removeprefix('--no-')}" in long)]
    return f"there are {', '.join((*known, '--help'))}" if known else "see --help"


def _unexpected(argument: Argument, token: cyclopts.Token) -> str:
    given = json.dumps(token.value, ensure_ascii=False)
    return f"{token.keyword or argument.name} = {given}: expected {_expected(argument, token.value)}"


def _expected(argument: Argument, value: str | None) -> str:
    hints = _alternatives(argument.hint)
    choices = [choice for hint in hints if get_origin(hint) is Literal for choice in get_args(hint)]
    if choices:
        close = nearest(value or "", choices)
        meant = f'; did you mean "{close}"?' if close else ""
        return "one of " + ", ".join(f'"{choice}"' for choice in choices) + meant
    return next((_EXPECTED[hint] for hint in hints if hint in _EXPECTED), "a value")


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or of a tuple's elements, without what is annotated; else the type itself."""
    members = (hint,) if get_origin(hint) is Literal else get_args(hint) or (hint,)
    return tuple(get_args(member)[0] if get_origin(member) is Annotated else member for member in members)
