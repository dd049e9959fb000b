"""Objects as nested tables, the form that TOML and JSON have, and back.

A section is a table of options. In a family, one key says which kind it is; the kind alone, as text, is a table with
nothing else. Sections become objects at once, but for classes whose objects need what only a builder knows: of those,
`functools.partial` holds the class and its options.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import torch

from equilibria.configuration import kinds
from equilibria.configuration.kinds import REQUIRED, Family, family_of, listed, options, section_of
from equilibria.errors import Problems, cause, nearest

Table = dict[str, Any]
Keys = tuple[str, ...]

NOTHING = "none"  # how a table says None where that is not the default
ITSELF = ""  # the key of a section's kind among flags, which may set options of it besides

# What others call what we have.
_ELSEWHERE = {
    **dict.fromkeys(("epochs", "num_epochs", "max_iters"), "steps"),
    "max_iter": "max_evaluations",
    **dict.fromkeys(("o", "out", "output", "out_dir", "output_dir"), "directory"),
}


def table_of(value: object, path: Callable[[Path], str] = str) -> Any:
    """A section as a table with every option, defaults included; a plain value as TOML has it, paths as `path` says."""
    if isinstance(value, partial) or kinds.made_at_once(type(value)):
        return _table(*_parts(value), path)
    if isinstance(value, tuple | list):
        return [table_of(part, path) for part in value]
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return path(value) if isinstance(value, Path) else value


def _parts(value: Any) -> tuple[Any, Mapping[str, Any]]:
    """The class of a section and its options, which an object keeps in attributes of their names."""
    if not isinstance(value, partial):
        cls = type(value)
        if lost := [name for name in options(cls) if not hasattr(value, name)]:
            raise ValueError(f"{cls.__name__} has no attribute {lost[0]}; keep the argument in one, for the recipe")
        return cls, {name: getattr(value, name) for name in options(cls)}
    name = getattr(value.func, "__name__", value.func)
    known: Any = options(value.func)  # type: ignore[arg-type]
    if value.args:
        raise ValueError(f"{name} has arguments without a name, {value.args}; give each by its name")
    if unknown := sorted(value.keywords.keys() - known):
        raise ValueError(f"{name}: {unknown[0]} is no option of a recipe; it takes {', '.join(known) or 'none'}")
    return value.func, value.keywords


def _table(cls: Any, values: Mapping[str, object], path: Callable[[Path], str]) -> Table:
    family = family_of(cls)
    table: Table = {} if family is None else {family.tag: family.name(cls)}
    for name, option in options(cls).items():
        value = values.get(name, option.default)
        table[name] = NOTHING if value is None and option.default is not None else table_of(value, path)
    return table


class Maker:
    """Makes objects of layers of tables, each of which has the last word over those before it.

    Where a layer gives another kind, what was chosen for the kind before passes on to it: of a default, what all of the
    family have; of an earlier layer, what both have. What says no more than the default of its kind passes on to none.

    Attributes:
        dropped: keys of earlier layers that the new kind does not have, where they set other values than the defaults.
    """

    def __init__(self) -> None:
        self.dropped: list[Keys] = []

    def make(
        self, annotation: Any, default: Any, layers: Sequence[Any], keys: Keys = (), outer: Table | None = None
    ) -> Any:
        """The value of an option of some type, given its default, what each layer says, its keys, and the options that
        it takes over from the section around it. Problems are everything that is wrong with it.
        """
        section, layers = section_of(annotation), [_alone(layer) for layer in layers]
        if kinds.optional(annotation):
            for layer in layers:
                if isinstance(layer, Mapping) and ITSELF in layer and _is_nothing(layer[ITSELF]):
                    others = ", ".join(sorted(layer.keys() - {ITSELF}))
                    raise Problems((keys, f"= none: it has no {others} then; drop one of them"))
            nothing = [number for number, layer in enumerate(layers, start=1) if _is_nothing(layer)]
            default, layers = (None, layers[nothing[-1] :]) if nothing else (default, layers)
            if default is None and not layers:
                return None
        try:
            if section is None:
                for inner in (layer for layer in layers if isinstance(layer, Mapping)):
                    below = sorted(inner.keys() - {ITSELF})[:1]
                    raise Problems(((*keys, *below), f"{'.'.join(keys)} takes a value, not a section"))
                return _plain(layers[-1], annotation) if layers else default
            return self._section(section, default, [_expanded(layer, section) for layer in layers], keys, outer or {})
        except Problems:
            raise
        except Exception as problem:  # of a class that may be the user's own
            raise Problems((keys, cause(problem))) from problem

    def _section(
        self, section: Family | type, default: Any, layers: Sequence[Mapping[str, Any]], keys: Keys, outer: Table
    ) -> Any:
        family: Any = section if isinstance(section, Family) else family_of(section)
        cls: Any = None if section is family else section
        tag, values, given = family and family.tag, {}, {}
        if default is not REQUIRED and default is not None:
            cls, values = _parts(default)
        for layer in layers:
            kind = _kind(family, layer[tag], (*keys, tag)) if family is section and tag in layer else cls
            if kind is not cls:
                values = _common(family, cls, values)
                chosen = {n: parts for n, parts in given.items() if _differs(options(cls).get(n), parts)}
                self.dropped += [(*keys, name) for name in sorted(chosen.keys() - options(kind))]
                cls, given = kind, {name: parts for name, parts in chosen.items() if name in options(kind)}
            for name in layer.keys() - {tag}:
                given.setdefault(name, []).append(layer[name])
        if cls is None:
            raise Problems(((*keys, tag), f"is missing: which {family.noun}?"))
        return self._object(cls, {**values, **outer} if layers else values, given, keys)

    def _object(self, cls: Any, values: Mapping[str, Any], given: Mapping[str, Sequence[Any]], keys: Keys) -> Any:
        """An object, or what makes it later."""
        known, family, arguments = options(cls), family_of(cls), {}
        of = "" if family is None else f"{family.tag} {family.name(cls)} has "
        problems: list[tuple[Keys, str]] = [
            ((*keys, name), f"{of}no such key; {_of_other_kinds(name, family) or _instead(name, cls, keys)}")
            for name in sorted(given.keys() - known)
        ]
        for name, option in known.items():
            default, layers, outer = values.get(name, option.default), given.get(name, ()), {}
            if default is REQUIRED and not layers:
                problems.append(((*keys, name, *_needed(option)), "is missing"))
                continue
            if family is not None and section_of(option.annotation) is family:
                outer = {key: arguments[key] for key in family.inherited if key in arguments}
            try:
                arguments[name] = self.make(option.annotation, default, layers, (*keys, name), outer)
            except Problems as inner:
                problems += inner.found
        made = partial(cls, **arguments)
        if not problems:
            return made() if kinds.made_at_once(cls) else made
        try:
            made()
        except ValueError as problem:
            if str(problem).partition(" ")[0] in given.keys() & arguments.keys():  # not of one that is wrong already
                problems.append((keys, str(problem)))
        except Exception:
            pass
        raise Problems(*problems)


def _kind(family: Family, given: Any, keys: Keys) -> type:
    kind = Maker().make(str, REQUIRED, [given], keys)
    try:
        return family.find(kind)
    except ValueError as problem:
        raise Problems((keys, f"= {problem}")) from problem


def _differs(option: Any, layers: Sequence[Any]) -> bool:
    """Whether layers set an option to another value than its default."""
    try:
        return option is None or table_of(Maker().make(option.annotation, option.default, layers)) != table_of(
            option.default
        )
    except Problems:
        return True


def _common(family: Family, cls: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """What was chosen for a default, other than its kind has by itself, of options that all of the family have."""
    own = options(cls) if values else {}
    known = {name for base in family.bases for name in options(base)} & own.keys()
    return {n: value for n, value in values.items() if n in known and table_of(value) != table_of(own[n].default)}


def _expanded(given: Any, section: Family | type) -> Mapping[str, Any]:
    """A layer of a section as a table: a kind alone, or `true` for a section that is off by default."""
    tag = section.tag if isinstance(section, Family) else "kind" if "kind" in options(section) else None
    if isinstance(given, Mapping) and ITSELF in given:
        return {**_expanded(given[ITSELF], section), **{name: value for name, value in given.items() if name != ITSELF}}
    if isinstance(given, Mapping):
        return given
    value = _last(given)
    if value is True or value == "true":
        return {}
    if isinstance(value, str) and tag is not None:
        return {tag: given}
    raise ValueError(f"{value!r}: expected a section with keys")


def _needed(option: Any) -> list[str]:
    """The first key that a section needs; none of a value."""
    section = section_of(option.annotation)
    known = options(section).items() if isinstance(section, type) else ()
    return [name for name, inner in known if inner.default is REQUIRED][:1]


def _of_other_kinds(name: str, family: Family | None) -> str:
    """Which other kinds have a key."""
    found = [] if family is None else [kind for kind, cls in family.kinds().items() if name in options(cls)]
    if family is None or not found:
        return ""
    *others, last = found
    return f"{family.tag} {', '.join(others)} and {last} have it" if others else f"{family.tag} {last} has it"


def _instead(name: str, cls: Any, keys: Keys) -> str:
    """What may be meant by a key that there is not: one like it here, or below; else all that there are here."""
    known, meant = list(options(cls)), _ELSEWHERE.get(name.replace("-", "_"), name)
    close = _abbreviated(meant, known) or nearest(meant, known) or _below(meant, cls)
    return f"the nearest is {'.'.join((*keys, close))}" if close else f"it takes {', '.join(known) or 'none'}"


def _abbreviated(name: str, known: Iterable[str]) -> str | None:
    """The key of which a name has the initials, as `lr` has those of learning_rate."""
    return next((key for key in known if "_" in key and "".join(word[0] for word in key.split("_")) == name), None)


def _below(name: str, cls: Any) -> str | None:
    """A key further below whose last part is a name, or has its letters as initials, as `lr` has of learning_rate."""
    found = sorted(_dotted(cls), key=lambda key: key.count("."))
    parts = {key: key.rpartition(".")[2] for key in found if "." in key}
    same = [key for key, part in parts.items() if part == name.replace("-", "_")]
    short = [key for key, part in parts.items() if _abbreviated(name, [part])]
    close = nearest(name, parts.values())
    return next(iter((*same, *short, *(key for key, part in parts.items() if part == close))), None)


def _dotted(cls: Any) -> Iterator[str]:
    """The keys of a section with those of the sections below it, of their default kinds."""
    for name, option in options(cls).items():
        yield name
        section = section_of(option.annotation)
        default = option.default if isinstance(section, Family) else section
        if section is None or default is None or default is REQUIRED:
            continue
        made = default.func if isinstance(default, partial) else default
        yield from (f"{name}.{key}" for key in _dotted(made if isinstance(made, type) else type(made)))


class Written(tuple[list[str], ...]):
    """What stands behind a flag, each time it was given; to be read as whatever its key holds."""

    @property
    def all(self) -> list[str]:
        return [value for values in self for value in values]


def _last(value: Any) -> Any:
    """The value that has the last word; a flag without one is true."""
    if not isinstance(value, Written):
        return value
    if len(value[-1]) > 1:
        raise ValueError(f"= {' '.join(value[-1])}: expected one value")
    return value[-1][0] if value[-1] else "true"


def _alone(value: Any) -> Any:
    """A flag's value, without the table that would hold flags below it."""
    return value[ITSELF] if isinstance(value, Mapping) and set(value) == {ITSELF} else value


def _is_nothing(value: Any) -> bool:
    return value[-1] == [NOTHING] if isinstance(value, Written) else value is None or value == NOTHING


def _plain(value: Any, annotation: Any) -> Any:
    """A number, a text, a path, a choice or a list of those."""
    problems = []
    for member in filter(kinds.says, kinds.alternatives(annotation)):
        try:
            return _sequence(value, member) if kinds.is_sequence(member) else _single(value, member)
        except ValueError as problem:
            problems.append(problem)
    raise problems[0]


def _sequence(value: Any, annotation: Any) -> tuple[Any, ...]:
    members = get_args(annotation)
    if isinstance(value, Written):
        parts = [part for text in value.all for part in (text[1:-1].split(",") if text[:1] == "[" else [text])]
        value = [Written([[part.strip(" \"'")]]) for part in parts if part]
    if not isinstance(value, list | tuple):
        such = f", such as [{_shown(value)}]" if isinstance(value, str | int | float) else ""
        raise ValueError(f"= {_shown(value)}: expected a list{such}")
    if get_origin(annotation) is tuple and ... not in members:
        if len(value) != len(members):
            raise ValueError(f"has {len(value)} values: expected {len(members)}")
        return tuple(map(_plain, value, members))
    return tuple(_plain(part, members[0]) for part in value)


def _single(given: Any, expected: Any) -> Any:
    """A number stays what it is, and a text; only what a command line says is read."""
    value, written = _last(given), isinstance(given, Written)
    if get_origin(expected) is Literal:
        choices = {str(choice) if written else choice: choice for choice in get_args(expected)}
        if isinstance(value, str | int | float) and value in choices:
            return choices[value]
        raise ValueError(f"= {_shown(value)}: expected {listed(str(value), [*map(str, get_args(expected))])}")
    words, types, read = _PLAIN[expected]
    if isinstance(given, Written) and not given[-1] and expected is not bool:
        raise ValueError(f"has no value: expected {words}")
    try:
        if written or type(value) in types:
            return read(value)
    except (ValueError, KeyError, OverflowError):
        pass
    several = written and "," in str(value) and expected in (int, float)
    hint = "; `equilibria sweep` takes several values" if several else ""
    raise ValueError(f"= {_shown(value)}: expected {words}{hint}")


def _shown(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_PLAIN: dict[Any, tuple[str, tuple[type, ...], Callable[[Any], Any]]] = {
    bool: ("true or false", (bool,), lambda value: {"true": True, "false": False}[str(value).lower()]),
    int: ("an integer", (int,), int),
    float: ("a number", (int, float), float),
    str: ("text", (str,), str),
    Path: ("a path", (str, type(Path())), Path),
    torch.dtype: ("the name of one of PyTorch's types, such as bfloat16", (str,), _DTYPES.__getitem__),
}
