"""Objects as nested tables, the form that TOML and JSON have, and back.

A section is a table of options. One of a family says in it which kind it is; the kind alone, as text, is a table with
nothing else. Dataclasses become objects at once. Of other classes, whose objects need what only a builder knows,
`functools.partial` holds the class and its options.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, is_dataclass, make_dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import torch
from cattrs import ClassValidationError, Converter, ForbiddenExtraKeysError, IterableValidationError

from equilibria.configuration.kinds import (
    REQUIRED,
    Family,
    alternatives,
    family_of,
    is_sequence,
    optional,
    options,
    section_of,
)
from equilibria.errors import nearest

Table = dict[str, Any]
Keys = tuple[str, ...]

NOTHING = "none"
"""How a table says None where that is not what leaving a key out means."""


ITSELF = ""
"""The key of a section's kind, where both the kind alone and options of it are given."""


@dataclass(frozen=True)
class Written:
    """What stands on a command line behind a flag, each time it was given; to be read as whatever its key holds."""

    given: Sequence[Sequence[str]]

    @property
    def all(self) -> list[str]:
        """Every value, for a list."""
        return [value for values in self.given for value in values]

    @property
    def last(self) -> str:
        """The value that has the last word; a flag without one is true.

        Raises:
            ValueError: there are several behind one flag.
        """
        values = self.given[-1]
        if len(values) > 1:
            raise ValueError(f"= {' '.join(values)}: expected one value")
        return values[0] if values else "true"


def _read(value: Any) -> Any:
    """What is written, where a list is not wanted."""
    return value.last if isinstance(value, Written) else value


# ---------------------------------------------------------------- objects to tables


def table_of(value: object, path: Callable[[Path], str] = str) -> Any:
    """A section as a table with every option, also those that were not given; a plain value as TOML has it.

    Args:
        value: of a recipe.
        path: how paths are written.
    """
    if isinstance(value, partial):
        return _table(value.func, value.keywords, path)
    if is_dataclass(value) and not isinstance(value, type):
        return _table(type(value), vars(value), path)
    if isinstance(value, tuple | list):
        return [table_of(part, path) for part in value]
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return path(value) if isinstance(value, Path) else value


def _table(cls: Any, values: Mapping[str, object], path: Callable[[Path], str]) -> Table:
    family = family_of(cls)
    table: Table = {} if family is None else {family.tag: family.name(cls)}
    for name, option in _options(cls).items():
        value = values.get(name, option.default)
        table[name] = NOTHING if value is None and option.default is not None else table_of(value, path)
    return table


def _options(cls: type) -> Mapping[str, Any]:
    family = family_of(cls)
    return options(cls, frozenset() if family is None else family.supplied)


# ---------------------------------------------------------------- tables over tables


class Layers:
    """Lays what was given over what stands below it, section by section.

    Where another kind is given, what was chosen for the kind below passes on to it: of a default, as far as all of the
    family have the option (`keeps="common"`); of a file under flags, as far as both have it (`"shared"`).

    Attributes:
        dropped: keys of the table below that the new kind does not have.
    """

    def __init__(self, keeps: Literal["common", "shared"]) -> None:
        self._keeps = keeps
        self.dropped: list[Keys] = []

    def over(self, annotation: Any, below: Any, given: Any, keys: Keys = ()) -> Any:
        """The table of a section, complete.

        Args:
            annotation: the type of the section.
            below: its table, or None.
            given: the table, or the kind alone, that has the last word.
            keys: where the section is.
        """
        section = section_of(annotation)
        if section is None:
            return given
        family = section if isinstance(section, Family) else None
        given = _expanded(given, section)
        if not isinstance(given, Mapping):
            return given
        below = below if isinstance(below, Mapping) else {}
        cls: Any = section
        if family is not None:
            try:
                kind = _read(given.get(family.tag, below.get(family.tag)))
                cls = family.find(str(kind))
            except ValueError:
                return dict(given)  # whoever makes the object says what is wrong
            if below.get(family.tag) != kind:
                below = self._passed_on(family, cls, below, keys)
        result: Table = {} if family is None else {family.tag: family.name(cls)}
        result |= {name: value for name, value in below.items() if family is None or name != family.tag}
        for name, value in given.items():
            if family is None or name != family.tag:
                option = _options(cls).get(name)
                result[name] = value
                if option is not None:
                    result[name] = self.over(option.annotation, below.get(name), value, (*keys, name))
        return result

    def _passed_on(self, family: Family, cls: type, below: Mapping[str, Any], keys: Keys) -> Table:
        """What a section of another kind begins with: its defaults, and what was chosen for the kind below."""
        old = below.get(family.tag)
        before = {} if old is None else defaults(family.find(str(old)))
        chosen = {name: value for name, value in below.items() if name != family.tag and value != before.get(name)}
        known = set(_options(cls))
        if self._keeps == "common":
            known &= {name for base in family.bases for name in _options(base)}
        else:
            self.dropped += [(*keys, name) for name in sorted(chosen) if name not in known]
        return {**defaults(cls), **{name: value for name, value in chosen.items() if name in known}}


def _expanded(given: Any, section: Family | type) -> Any:
    """A kind alone as a table, and likewise `true` for a section that may be left out."""
    given = _read(given)
    if given is True or given == "true":
        return {}
    if not isinstance(section, Family):
        return {"kind": given} if isinstance(given, str) and "kind" in _options(section) else given
    if isinstance(given, str) and given != NOTHING:
        return {section.tag: given}
    if isinstance(given, Mapping) and ITSELF in given:
        return {section.tag: given[ITSELF], **{name: value for name, value in given.items() if name != ITSELF}}
    return given


def defaults(cls: type) -> Table:
    """The options of a class that have a default."""
    return deepcopy({n: table_of(o.default) for n, o in _options(cls).items() if o.default is not REQUIRED})


# ---------------------------------------------------------------- tables to objects


def made(cls: type, table: Mapping[str, Any]) -> Any:
    """The object that a table describes.

    Raises:
        Problems: what is wrong with it, all of it.
    """
    try:
        return _converter.structure(table, cls)
    except Exception as error:
        found = list(_problems(error, ()))
        if not found:
            raise
        raise Problems(found) from error


class Problems(ValueError):
    """What is wrong with a table: keys, and what to say of each."""

    def __init__(self, found: list[tuple[Keys, str]]) -> None:
        super().__init__("; ".join(f"{'.'.join(keys)}: {text}" for keys, text in found))
        self.found = found


def _problems(error: BaseException, keys: Keys) -> Iterator[tuple[Keys, str]]:
    match error:
        case Problems():
            yield from ((keys + inner, text) for inner, text in error.found)
        case ClassValidationError():
            named, others = error.group_exceptions()
            for problem, note in named:
                if isinstance(problem, KeyError):
                    yield (*keys, note.name), "is missing"
                else:
                    yield from _problems(problem, (*keys, note.name))
            for problem in others:
                yield from _problems(problem, keys)
        case IterableValidationError():
            for problem in error.exceptions:
                yield from _problems(problem, keys)
        case ForbiddenExtraKeysError():
            known = [entry.name for entry in vars(error.cl)["__dataclass_fields__"].values()]
            for name in sorted(error.extra_fields):
                yield (*keys, name), _unknown(name, known, keys, error.cl.__doc__ or "")
        case ValueError() | TypeError():
            yield keys, str(error)


def _unknown(name: str, known: list[str], keys: Keys, of: str) -> str:
    """That there is no such key, and the nearest there is."""
    close = nearest(name, known)
    near = f"the nearest is {'.'.join((*keys, close))}" if close else f"it takes {', '.join(known) or 'none'}"
    return f"{f'{of} has no such key' if of else 'no such key'}; {near}"


@cache
def _holder(cls: type) -> type:
    """A dataclass of the options of a class alone."""
    family = family_of(cls)
    entries = [
        (o.name, o.annotation, field() if o.default is REQUIRED else field(default=None))
        for o in _options(cls).values()
    ]
    holder = make_dataclass(cls.__name__, entries, kw_only=True, namespace={"is_holder": True})
    holder.__doc__ = "" if family is None else f"{family.tag} {family.name(cls)}"
    return holder


def _section(table: Any, cls: type) -> Any:
    """An object, or what makes it later."""
    family, table = family_of(cls), _read(table)
    if table is True or table == "true":
        table = {}
    if isinstance(table, str) and "kind" in _options(cls):
        table = {"kind": table}
    if not isinstance(table, Mapping):
        raise ValueError(f"{table!r}: expected a section with keys")
    given = {name: value for name, value in table.items() if family is None or name != family.tag}
    values = _converter.structure(given, _holder(cls))
    arguments = {name: getattr(values, name) for name in given}
    return cls(**arguments) if is_dataclass(cls) else partial(cls, **arguments)


def _member(table: Any, family: Family) -> Any:
    """An object of a family."""
    table = _read(table)
    if isinstance(table, str):
        table = {family.tag: table}
    if not isinstance(table, Mapping):
        raise ValueError(f"{table!r}: expected a section with keys")
    if family.tag not in table:
        raise Problems([((family.tag,), f"is missing: which {family.noun}?")])
    try:
        cls = family.find(str(_read(table[family.tag])))
    except ValueError as problem:
        raise Problems([((family.tag,), f"= {problem}")]) from problem
    return _section(table, cls)


def _value(value: Any, annotation: Any) -> Any:
    """A value of a union, a literal or a section."""
    if optional(annotation) and (value is None or (not isinstance(value, Written) and value == NOTHING)):
        return None
    if optional(annotation) and isinstance(value, Written) and value.all == [NOTHING]:
        return None
    section = section_of(annotation)
    if section is not None:
        return _member(value, section) if isinstance(section, Family) else _section(value, section)
    problems = []
    for member in alternatives(annotation):
        try:
            return _literal(value, member) if get_origin(member) is Literal else _converter.structure(value, member)
        except (ValueError, TypeError) as problem:
            problems.append(problem)
    raise problems[0]


def _is_ours(annotation: Any) -> bool:
    """Whether `_value` reads it, and not the library."""
    if hasattr(annotation, "is_holder"):
        return False
    wrapped = alternatives(annotation) != (annotation,)
    return wrapped or get_origin(annotation) is Literal or section_of(annotation) is not None


def _literal(value: Any, annotation: Any) -> Any:
    choices, written, value = get_args(annotation), isinstance(value, Written), _read(value)
    for choice in choices:
        if value == choice or (written and value == str(choice)):
            return choice
    close = nearest(str(value), [str(choice) for choice in choices])
    meant = f'; did you mean "{close}"?' if close else ""
    listed = ", ".join(f'"{choice}"' for choice in choices)
    raise ValueError(f"= {_shown(value)}: expected one of {listed}{meant}")


def _sequence(value: Any, annotation: Any) -> Any:
    if isinstance(value, Written):
        parts = [part for text in value.all for part in (text[1:-1].split(",") if text[:1] == "[" else [text])]
        value = [Written([[part.strip()]]) for part in parts if part]
    if not isinstance(value, list | tuple):
        raise ValueError(f"= {_shown(value)}: expected a list")
    return tuple(_converter.structure(part, get_args(annotation)[0]) for part in value)


def _plain(expected: type, words: str) -> Any:
    """A hook for numbers, text and paths: nothing becomes what it is not, but for what a command line writes."""

    def structure(value: Any, _: Any) -> Any:
        written, value = isinstance(value, Written), _read(value)
        try:
            if written:
                return _READ[expected](value)
            fits = type(value) is expected or (expected is float and type(value) is int)
            if fits or (expected is Path and isinstance(value, str | Path)):
                return _READ[expected](value)
        except (ValueError, KeyError, OverflowError):
            pass
        raise ValueError(f"= {_shown(value)}: expected {words}")

    return structure


_READ: dict[type, Any] = {
    bool: lambda value: value if isinstance(value, bool) else {"true": True, "false": False}[value.lower()],
    int: int,
    float: float,
    str: str,
    Path: Path,
}


def _dtype(value: Any, _: Any) -> torch.dtype:
    found = getattr(torch, str(value), None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"= {_shown(value)}: expected the name of one of PyTorch's types, such as bfloat16")
    return found


def _shown(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


_converter = Converter(forbid_extra_keys=True)
for _type, _words in (
    (int, "an integer"),
    (float, "a number"),
    (bool, "true or false"),
    (str, "text"),
    (Path, "a path"),
):
    _converter.register_structure_hook(_type, _plain(_type, _words))
_converter.register_structure_hook(torch.dtype, _dtype)
_converter.register_structure_hook_func(is_sequence, _sequence)
_converter.register_structure_hook_func(_is_ours, _value)
