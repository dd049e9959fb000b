"""Kinds: from the names that recipes use to classes, and from a class to the options that a recipe may set.

A class belongs to a family by its base. Its kind is its name in lower case, without the ending that the family shares:
`kind = "transformer_xl"` is `TransformerXLCell`. Only classes of the family's packages have such short names; any
other is named by where it is imported from, `kind = "package.module:Class"`. Its options are the arguments of its
constructor, with their types, defaults and explanations: each is declared once.
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
from inspect import Parameter
from operator import attrgetter
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from docstring_parser import parse, parse_from_object
from torch import nn, optim

from equilibria.cells import Cell
from equilibria.data import Source, Task
from equilibria.depths import Depth, Limits
from equilibria.errors import cause, nearest
from equilibria.gradients import Gradient
from equilibria.models import ModelRecipe
from equilibria.nn import TokenEmbedding
from equilibria.optimization import Averaging, Optimizer, Schedule
from equilibria.solvers import AdjointSolver, Solver

REQUIRED: Any = Parameter.empty  # the default of an option that has none
_VARIABLE = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class Family:
    """Classes that may stand in the same place of a recipe.

    Args:
        noun: what one of them is called in messages.
        bases: what they derive from; classes in the packages of those that are ours have short names.
        tag: the key of the kind.
        ending: dropped from class names.
        supplied: arguments that whoever builds the object gives, so that they are no options.
        inherited: options that one inside another takes over from it by default.
    """

    noun: str
    bases: tuple[type, ...]
    tag: str = "kind"
    ending: str = ""
    supplied: tuple[str, ...] = ()
    inherited: tuple[str, ...] = ()

    @cache  # noqa: B019 (families live as long as the program)
    def kinds(self) -> dict[str, type]:
        """The classes that have short names, in their order."""
        found = {}
        for home in dict.fromkeys(base.__module__.rpartition(".")[0] for base in self.bases):
            if home.partition(".")[0] != __name__.partition(".")[0]:
                continue
            package = import_module(home)
            inner = pkgutil.iter_modules(package.__path__, f"{home}.")
            for module in (package, *(import_module(entry.name) for entry in inner if not entry.ispkg)):
                for cls in vars(module).values():
                    own = isinstance(cls, type) and cls.__module__ == module.__name__ and issubclass(cls, self.bases)
                    if own and not cls.__name__.startswith("_") and self._complete(cls):
                        found[self._short(cls)] = cls
        return found

    def find(self, kind: str) -> type:
        """The class of a kind; a ValueError where there is none, or it is of another family."""
        if ":" in kind:
            found = imported(kind)
            if not isinstance(found, type) or not issubclass(found, self.bases):
                bases = " or ".join(f"{base.__module__}.{base.__qualname__}" for base in self.bases)
                raise ValueError(f'"{kind}": expected a subclass of {bases}')
            return found
        if kind not in self.kinds():
            raise ValueError(f'"{kind}": expected {listed(kind, self.kinds(), "package.module:Class")}')
        return self.kinds()[kind]

    def name(self, cls: type) -> str:
        """The kind of a class; a ValueError where no other program could import it."""
        short = self._short(cls)
        if self.kinds().get(short) is cls:
            return short
        if cls.__module__ == "__main__" or "<locals>" in cls.__qualname__:
            raise ValueError(f"other programs cannot import {cls.__qualname__}; define it at the top level of a module")
        return f"{_home(cls)}:{cls.__qualname__}"

    def _short(self, cls: type) -> str:
        """`TransformerXLCell` as `transformer_xl`; what is all capitals, or ends in one, stays together: `AdamW` is
        `adamw`."""
        name = cls.__name__.removesuffix(self.ending) or cls.__name__
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-zA-Z])", "_", name).lower()

    def _complete(self, cls: type) -> bool:
        if inspect.isabstract(cls) or cls in self.bases or not getattr(cls, "in_recipes", True):
            return False
        required = {name for name, entry in inspect.signature(cls).parameters.items() if entry.default is REQUIRED}
        return required <= {*options(cls), *self.supplied}


FAMILIES = (
    Family("solver", (Solver,), "method", inherited=("scope", "tol")),
    Family("adjoint solver", (AdjointSolver,), "method"),
    Family("gradient", (Gradient,), "method"),
    Family("cell", (Cell,), ending="Cell", supplied=("injection",)),
    Family("depth", (Depth,), ending="Depth"),
    Family("kind of limits", (Limits,), ending="Limits"),
    Family("embedding", (TokenEmbedding,), ending="Embedding", supplied=("vocabulary_size", "d_model", "d_output")),
    Family("model", (ModelRecipe,), ending="Recipe"),
    Family("source", (Source, Task), "source", ending="Text"),
    Family("optimizer", (Optimizer, optim.Optimizer), supplied=("params", "lr")),
    Family("schedule", (Schedule,)),
    Family("averaging", (Averaging,)),
)
"""Which classes may stand where."""


def _home(cls: type) -> str:
    """The outermost package that offers a class by its name; `torch.optim`, not `torch.optim.adagrad`."""
    parts = cls.__module__.split(".")
    homes = (".".join(parts[:length]) for length in range(1, len(parts)))
    return next((h for h in homes if getattr(sys.modules.get(h), cls.__name__, None) is cls), cls.__module__)


def imported(path: str) -> object:
    """What `package.module:Class` names; modules of the working directory are found, as by `python -m`."""
    module, _, name = path.partition(":")
    if not module or not name or module.startswith("."):
        raise ValueError(f'"{path}": expected package.module:Class')
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        found = import_module(module)
    except ModuleNotFoundError as problem:
        raise ValueError(f'"{path}" cannot be imported ({problem}); install it, or start where it is') from problem
    except Exception as problem:  # of a module that may be the user's own
        raise ValueError(f'"{path}" cannot be imported: {cause(problem)}') from problem
    try:
        return attrgetter(name)(found)
    except AttributeError as problem:
        raise ValueError(f'"{path}": the module {module} has no {name}') from problem


def listed(word: str, choices: Sequence[str] | dict[str, Any], other: str = "") -> str:
    """What a word should have been, for messages: `one of "a", "b"; did you mean "a"?`."""
    close = nearest(word, choices)
    alternative = f', or "{other}"' if other else ""
    meant = f'; did you mean "{close}"?' if close else ""
    named = ", ".join(f'"{choice}"' for choice in choices)
    return f"one of {named}{alternative}{meant}"


@cache
def options(cls: type) -> dict[str, Parameter]:
    """What a recipe may set of a class, in the order of its constructor: whatever TOML can express."""
    maker: Any = next(base for base in cls.__mro__ if "__init__" in vars(base))
    has_fields = "__dataclass_params__" in vars(maker)  # not of a dataclass whose subclass has a constructor of its own
    try:
        hints = get_type_hints(maker if has_fields else maker.__init__)
    except (NameError, TypeError) as problem:
        raise ValueError(f"an annotation of {cls.__module__}:{cls.__qualname__} cannot be read: {problem}") from problem
    entries = fields(maker) if has_fields else ()
    made = {entry.name: entry.default_factory() for entry in entries if entry.default_factory is not MISSING}
    family = family_of(cls)
    return {
        name: entry.replace(annotation=hints[name], default=made.get(name, entry.default))
        for name, entry in inspect.signature(cls).parameters.items()
        if name in hints
        and entry.kind not in _VARIABLE
        and says(hints[name])
        and (family is None or name not in family.supplied)
    }


def says(annotation: Any) -> bool:
    """Whether a recipe can express a value of this type."""
    return any(
        member in (int, float, bool, str, Path, torch.dtype)
        or get_origin(member) is Literal
        or (is_sequence(member) and section_of(get_args(member)[0]) is None and says(get_args(member)[0]))
        or section_of(member) is not None
        for member in alternatives(annotation)
    )


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """The members of a union except None; any other type alone."""
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return tuple(member for member in members if member is not NoneType)


def optional(annotation: Any) -> bool:
    """Whether a value may be None."""
    return NoneType in get_args(annotation)


def is_sequence(annotation: Any) -> bool:
    """Whether it is a tuple, list or sequence of values."""
    return get_origin(annotation) in (tuple, list, Sequence) and bool(get_args(annotation))


def section_of(annotation: Any) -> Family | type | None:
    """The family, or the one dataclass, of a section with this type; None for a plain value, and for a dataclass that
    is not frozen: it holds what changes as a program runs."""
    members = [get_args(member)[0] if get_origin(member) is partial else member for member in alternatives(annotation)]
    classes = {origin for member in members if isinstance(origin := get_origin(member) or member, type)}
    family = next((family for family in FAMILIES if classes == set(family.bases)), None)
    frozen = (cls for cls in classes if is_dataclass(cls) and vars(cls)["__dataclass_params__"].frozen)
    return family or next(frozen, None)


def family_of(cls: type) -> Family | None:
    """The first family that a class belongs to."""
    return next((family for family in FAMILIES if issubclass(cls, family.bases)), None)


def made_at_once(cls: type) -> bool:
    """Whether recipes hold objects of a class; else what makes them, once there is what they need besides. A module has
    weights, which each model needs for itself."""
    family = family_of(cls)
    return is_dataclass(cls) or (family is not None and not family.supplied and not issubclass(cls, nn.Module))


def explained(cls: type) -> dict[str, str]:
    """What the docstrings of a class and its bases, and the strings below its fields, say of its arguments."""
    texts: dict[str, str] = {}
    for part in reversed(cls.__mro__[:-1]):
        found = parse_from_object(part).params if is_dataclass(part) else parse(part.__doc__ or "").params
        for entry in found:
            texts |= {name.strip(): entry.description or "" for name in entry.arg_name.split(",")}
    return texts
