"""What `--help` says of a recipe: every key as a flag, with its explanation and its default."""

import re
from collections.abc import Iterator
from inspect import Parameter
from typing import Any, Literal, get_args, get_origin

from rich.console import Console
from rich.table import Table
from rich.text import Text

from equilibria.configuration.kinds import REQUIRED, Family, alternatives, explained, imported, options, section_of
from equilibria.configuration.recipe import Recipe
from equilibria.configuration.tables import NOTHING, table_of
from equilibria.errors import UserError, nearest

_ABOUT = (
    "Settings of the recipe: keys of its file, and flags, which have the last word: tol below model.depth.solver is "
    "--model.depth.solver.tol. A default is for what neither has. --help KEY explains all kinds of a section, --help "
    "package.module:Class your own. --unset KEY takes a key out of the file."
)
_TAKEN = {int: "INT", float: "FLOAT", bool: "true|false", str: "TEXT"}
_SAID = {None: NOTHING, True: "true", False: "false"}

Section = tuple[str, list[tuple[str, str]]]
"""A title, and flags with what there is to say of each."""


def print_settings(console: Console, below: str = "") -> None:
    """Prints the sections below a key, with all kinds, or the options of a class, `package.module:Class`; without a key
    all sections, with the default kinds alone.

    Raises:
        UserError: there is no such section or class.
    """
    console.print(f"\n{_ABOUT}", highlight=False)
    for title, flags in _of_own(below) if ":" in below else _known(below):
        table = Table.grid(padding=(0, 2))
        table.add_column(max_width=36, overflow="fold")
        table.add_column()
        for flag, explanation in flags:
            table.add_row(Text(f"  {flag}"), Text(explanation))
        console.print(Text(f"\n{title}", style="bold"))
        console.print(table)


def _known(below: str) -> list[Section]:
    found = list(sections(below))
    if not found:
        keys = [title.partition(":")[0] for title, _ in sections()]
        raise UserError(f"--help {below}: no such section; the nearest is {nearest(below, keys) or 'model'}")
    return found


def _of_own(path: str) -> Iterator[Section]:
    try:
        cls = imported(path)
        if not isinstance(cls, type):
            raise ValueError(f'"{path}" is not a class')
        yield f"{path}: {_first(cls)}", _flags(cls, frozenset())
        yield from _of_class(cls, "…", {})
    except ValueError as problem:
        raise UserError(f"--help {problem}") from problem


def sections(below: str = "") -> Iterator[Section]:
    """Every section once; a section that is like one before it refers there."""
    for title, flags in _of_class(Recipe, "", {}, every=bool(below)):
        if title.startswith(below):
            yield title, flags


def _of_class(
    cls: type, key: str, seen: dict[object, str], known: frozenset[str] = frozenset(), every: bool = True
) -> Iterator[Section]:
    """The sections inside one; `known` are options that have been explained for all kinds."""
    for option in options(cls).values():
        section = section_of(option.annotation)
        if section is None or option.name in known:
            continue
        below = f"{key}.{option.name}" if key else option.name
        if section in seen:
            if seen[section] != below:
                yield f"{below}: as {seen[section]}", []
            continue
        seen[section] = below
        if isinstance(section, Family):
            yield from _of_family(section, below, option, seen, every)
        else:
            yield f"{below}: {_first(section)}", _flags(section, known)
            yield from _of_class(section, below, seen, every=every)


def _of_family(family: Family, key: str, option: Parameter, seen: dict[object, str], every: bool) -> Iterator[Section]:
    kinds = family.kinds()
    usual = None if option.default in (REQUIRED, None) else str(table_of(option.default)[family.tag])
    default = "" if usual is None else f" [default: {usual}]"
    shared = frozenset.intersection(*(frozenset(options(kind)) for kind in kinds.values()))
    some = next(iter(kinds.values()))
    yield f"{key}: {', '.join(kinds)}{default}", _flags(some, frozenset(options(some)) - shared)
    yield from _of_class(some, key, seen, frozenset(options(some)) - shared, every)
    for name, kind in kinds.items():
        if every or name == usual:
            yield f'{key}.{family.tag} = "{name}": {_first(kind)}', _flags(kind, shared)
            yield from _of_class(kind, key, seen, shared, every)


def _flags(cls: type, known: frozenset[str]) -> list[tuple[str, str]]:
    said = {name: re.sub(r"\bNone\b", NOTHING, " ".join(text.split())) for name, text in explained(cls).items()}
    return [
        (f"{name} {_takes(option.annotation)}", f"{said.get(name, '')} {_default(option)}".strip())
        for name, option in options(cls).items()
        if name not in known and not isinstance(section_of(option.annotation), type)
    ]


def _takes(annotation: Any) -> str:
    if isinstance(section_of(annotation), Family):
        return "KIND"
    choices = [str(c) for member in alternatives(annotation) if get_origin(member) is Literal for c in get_args(member)]
    return "|".join(choices) or next((_TAKEN[m] for m in alternatives(annotation) if m in _TAKEN), "VALUE")


def _default(option: Parameter) -> str:
    if option.default is REQUIRED:
        return "[required]"
    said = table_of(option.default)
    if isinstance(said, dict):
        said = next(iter(said.values()), "")
    return f"[default: {_SAID[said] if said is None or isinstance(said, bool) else said}]"


def _first(cls: type) -> str:
    """The first paragraph of a docstring, in one line."""
    return " ".join((cls.__doc__ or "").partition("\n\n")[0].split())
