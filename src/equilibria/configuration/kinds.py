"""Kinds: from the names that recipes use to classes, and from a class to the options that a recipe may set.

A class belongs to a family by its base. Its kind is its name in lower case, without what all names of the family end
in: `kind = "post_norm"` is `PostNormCell`. One that lies in one of the family's packages is known by that name alone;
any other by where it is imported from, `kind = "package.module:Class"`. Its options are the arguments of its
constructor, with their types, defaults and explanations: nothing is said a second time here.
"""

from __future__ import annotations

import inspect
import pkgutil
import re
import sys
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from docstring_parser import parse, parse_from_object

from equilibria.errors import nearest

REQUIRED: Any = inspect.Parameter.empty
"""The default of an option that has none."""


@dataclass(frozen=True)
class Option:
    """An argument of a class that a recipe may set.

    Attributes:
        name: its key.
        annotation: its type.
        default: `REQUIRED` where it must be given.
    """

    name: str
    annotation: Any
    default: Any


@dataclass(frozen=True)
class Family:
    """Classes that may stand in the same place of a recipe.

    Args:
        noun: what one of them is called in messages.
        bases: what they derive from.
        homes: packages whose classes are known by their short names.
        tag: the key that says which.
        endings: what names end in that kinds leave out.
        supplied: arguments that whoever builds the object gives, so that they are no options.
    """

    noun: str
    bases: tuple[type, ...]
    homes: tuple[str, ...]
    tag: str = "kind"
    endings: tuple[str, ...] = ()
    supplied: frozenset[str] = frozenset()

    def kinds(self) -> dict[str, type]:
        """The classes that have short names, in their order."""
        return _kinds(self)

    def find(self, kind: str) -> type:
        """The class of a kind.

        Raises:
            ValueError: there is none, or it is of another family.
        """
        if ":" in kind:
            found = _imported(kind)
            if not isinstance(found, type) or not issubclass(found, self.bases):
                raise ValueError(f'"{kind}": expected a subclass of {self._bases}')
            return found
        try:
            return self.kinds()[kind]
        except KeyError:
            listed = ", ".join(f'"{name}"' for name in self.kinds())
            close = nearest(kind, self.kinds())
            meant = f'; did you mean "{close}"?' if close else ""
            raise ValueError(f'"{kind}": expected one of {listed}, or "package.module:Class"{meant}') from None

    def name(self, cls: type) -> str:
        """The kind of a class."""
        short = _short(cls.__name__, self.endings)
        return short if self.kinds().get(short) is cls else f"{cls.__module__}:{cls.__qualname__}"

    @property
    def _bases(self) -> str:
        return " or ".join(f"{base.__module__}.{base.__qualname__}" for base in self.bases)


@cache
def _kinds(family: Family) -> dict[str, type]:
    found = {}
    for home in family.homes:
        package = import_module(home)
        inner = pkgutil.iter_modules(getattr(package, "__path__", ()), f"{home}.")
        for module in (package, *(import_module(entry.name) for entry in inner if not entry.ispkg)):
            for cls in vars(module).values():
                own = isinstance(cls, type) and cls.__module__ == module.__name__ and issubclass(cls, family.bases)
                if own and not cls.__name__.startswith("_") and _complete(cls, family):
                    found[_short(cls.__name__, family.endings)] = cls
    return found


def _complete(cls: type, family: Family) -> bool:
    """Whether a recipe can say all that a class needs."""
    if inspect.isabstract(cls) or cls in family.bases or not getattr(cls, "in_recipes", True):
        return False
    known = {*options(cls), *family.supplied}
    arguments = inspect.signature(cls).parameters.values()
    return all(argument.name in known for argument in arguments if argument.default is REQUIRED)


def _short(name: str, endings: Sequence[str]) -> str:
    """`PostNormCell` as `post_norm`; what is all capitals, or ends in one, stays together: `AdamW` is `adamw`."""
    for ending in endings:
        name = name.removesuffix(ending) or name
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-zA-Z])", "_", name).lower()


def _imported(path: str) -> object:
    """What `package.module:Class` names; modules of the working directory are found, as by `python -m`."""
    module, _, name = path.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        return getattr(import_module(module), name)
    except (ImportError, ValueError) as problem:
        raise ValueError(f'"{path}" cannot be imported ({problem}); start where {module} is found') from problem
    except AttributeError as problem:
        raise ValueError(f'"{path}": the module {module} has no {name}') from problem


@cache
def options(cls: type, supplied: frozenset[str] = frozenset()) -> dict[str, Option]:
    """What a recipe may set of a class, in the order of its constructor; what TOML cannot say is left out."""
    if is_dataclass(cls):
        hints = get_type_hints(cls, include_extras=True)
        given = {entry.name: _default(entry) for entry in fields(cls) if entry.init}
    else:
        hints = get_type_hints(cls.__init__, include_extras=True)
        given = {name: entry.default for name, entry in inspect.signature(cls).parameters.items() if name in hints}
    return {
        name: Option(name, hints[name], default)
        for name, default in given.items()
        if name not in supplied and says(hints[name])
    }


def _default(entry: Any) -> Any:
    if entry.default_factory is not MISSING:
        return entry.default_factory()
    return REQUIRED if entry.default is MISSING else entry.default


def says(annotation: Any) -> bool:
    """Whether a recipe can say a value of this type."""
    members = alternatives(annotation)
    return any(
        member in (int, float, bool, str, Path, torch.dtype)
        or get_origin(member) is Literal
        or (is_sequence(member) and section_of(get_args(member)[0]) is None and says(get_args(member)[0]))
        or section_of(member) is not None
        for member in members
    )


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """The members of a union but for None; any other type alone."""
    if get_origin(annotation) is Annotated:
        return alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return tuple(part for member in get_args(annotation) if member is not NoneType for part in alternatives(member))
    return (annotation,)


def optional(annotation: Any) -> bool:
    """Whether a value may be None."""
    if get_origin(annotation) is Annotated:
        return optional(get_args(annotation)[0])
    return get_origin(annotation) in (Union, UnionType) and NoneType in get_args(annotation)


def is_sequence(annotation: Any) -> bool:
    """Whether it is a tuple, or any sequence, of values of one type."""
    return get_origin(annotation) in (tuple, Sequence) and bool(get_args(annotation))


_families: list[Family] = []


def declare(*families: Family) -> None:
    """Makes families known; where a class belongs to several, the first counts."""
    _families.extend(families)


def section_of(annotation: Any) -> Family | type | None:
    """What a section of a recipe with this type is: of a family, or of one dataclass; None for a plain value."""
    members = [get_args(member)[0] if get_origin(member) is partial else member for member in alternatives(annotation)]
    classes = {origin for member in members if isinstance(origin := get_origin(member) or member, type)}
    for family in _families:
        if classes and classes == set(family.bases):
            return family
    return next((cls for cls in classes if is_dataclass(cls)), None)


def family_of(cls: type) -> Family | None:
    """The family of a class."""
    return next((family for family in _families if issubclass(cls, family.bases)), None)


def explained(cls: type) -> dict[str, str]:
    """What the docstrings of a class and its bases say of its arguments, and the strings below its fields."""
    texts: dict[str, str] = {}
    for part in reversed(cls.__mro__):
        for entry in parse(part.__doc__ or "").params if part.__module__ != "builtins" else ():
            texts |= {name.strip(): entry.description or "" for name in entry.arg_name.split(",")}
        if is_dataclass(part):
            texts |= _below_fields(part)
    return texts


@cache
def _below_fields(cls: type) -> dict[str, str]:
    return {entry.arg_name: entry.description or "" for entry in parse_from_object(cls).params}
