"""What `--help` says of a recipe: every key as a flag, with its explanation and its default."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from inspect import Parameter
from typing import Any, Literal, get_args, get_origin

from rich.console import Console
from rich.table import Table
from rich.text import Text

from equilibria.configuration.kinds import REQUIRED, Family, alternatives, explained, imported, options, section_of
from equilibria.configuration.reading import SHORT_KEYS
from equilibria.configuration.recipe import Recipe
from equilibria.configuration.tables import NOTHING, table_of
from equilibria.errors import UserError, nearest

_ABOUT = (
    "Settings of the recipe: keys of its file, and flags, which have the last word. The key tol below "
    "model.depth.solver is --model.depth.solver.tol. --unset KEY takes a key out of the file."
)
_MORE = "--help KEY explains a section, --help all every one, --help package.module:Class your own."
_TAKEN = {int: "INT", float: "FLOAT", bool: "true|false", str: "TEXT"}
_SAID = {None: NOTHING, True: "true", False: "false"}
_OUTLINED = 3  # parts of a key: sections further below are named with the section that they are in


@dataclass(frozen=True)
class Section:
    """A part of a recipe.

    Attributes:
        key: its place.
        kind: which of several that may stand there, as `kind = "trellis"`; None for all of them, or the only one.
        about: what it is, or which kinds there are.
        flags: with what there is to say of each.
    """

    key: str
    kind: str | None
    about: str
    flags: tuple[tuple[str, str], ...]

    @property
    def title(self) -> str:
        """Its key, kind and explanation."""
        return f"{self.key if self.kind is None else f'{self.key}.{self.kind}'}: {self.about}"


def print_settings(console: Console, below: str = "") -> None:
    """Prints one section with all its kinds, and what is below it in a line each; `all` of them, or the options of a
    class, `package.module:Class`; without a key an outline.

    Raises:
        UserError: there is no such section or class.
    """
    if not below:
        _say(console, f"\n{_ABOUT} {_short()} {_MORE}\n")
        _outline(console, (section for section in sections() if section.key.count(".") < _OUTLINED))
        return
    chosen = list(_of_own(below) if ":" in below else sections())
    own = [section for section in chosen if section.key == below] if below in {s.key for s in chosen} else chosen
    if own is chosen and ":" not in below and below != "all":
        raise UserError(f"--help {below}: no such section; {_instead(below, [section.key for section in chosen])}")
    for section in own:
        _full(console, section)
    if further := [section for section in chosen if section.key.startswith(f"{below}.")]:
        _say(console, "\nbelow it, each explained by --help KEY:")
        _outline(console, further)


def _instead(key: str, keys: Sequence[str]) -> str:
    close = nearest(key, keys)
    return (
        f"the nearest is {close}" if close else f"there are {', '.join(k for k in dict.fromkeys(keys) if '.' not in k)}"
    )


def _short() -> str:
    return "Shorter: " + ", ".join(f"--{name} for --{key}" for name, key in SHORT_KEYS.items()) + "."


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False)


def _outline(console: Console, found: Iterable[Section]) -> None:
    """Print a line for each key."""
    first: dict[str, str] = {}
    for section in found:
        first.setdefault(section.key, re.split(r"(?<=[.:;]) | \(\D* \d{4}", section.about)[0].rstrip(":;."))
    width = max(map(len, first), default=0)
    for key, about in first.items():
        line = Text(f"  {key:{width}}  {about}")
        line.truncate(console.width, overflow="ellipsis")
        console.print(line)


def _full(console: Console, section: Section) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(max_width=36, overflow="fold")
    table.add_column()
    for flag, explanation in section.flags:
        table.add_row(Text(f"  {flag}"), Text(explanation))
    console.print(Text(f"\n{section.title}", style="bold"))
    console.print(table)


def _of_own(path: str) -> Iterator[Section]:
    try:
        cls = imported(path)
        if not isinstance(cls, type):
            raise ValueError(f'"{path}" is not a class')
        yield Section(path, None, _first(cls), _flags(cls, frozenset()))
        yield from _of_class(cls, "…", {})
    except ValueError as problem:
        raise UserError(f"--help {problem}") from problem


def sections() -> Iterator[Section]:
    """Every section once, with all its kinds; a section that is like one before it refers there."""
    return iter(dict.fromkeys(_of_class(Recipe, "", {})))


def _of_class(cls: type, key: str, seen: dict[object, str], known: frozenset[str] = frozenset()) -> Iterator[Section]:
    """The sections inside one; `known` are options that have been explained for all kinds."""
    for option in options(cls).values():
        section = section_of(option.annotation)
        if section is None or option.name in known:
            continue
        below = f"{key}.{option.name}" if key else option.name
        if section in seen:
            if seen[section] != below:
                yield Section(below, None, f"as {seen[section]}", ())
            continue
        seen[section] = below
        if isinstance(section, Family):
            yield from _of_family(section, below, option, seen)
        else:
            yield Section(below, None, _first(section), _flags(section, known))
            yield from _of_class(section, below, seen)


def _of_family(family: Family, key: str, option: Parameter, seen: dict[object, str]) -> Iterator[Section]:
    kinds = family.kinds()
    usual = None if option.default in (REQUIRED, None) else str(table_of(option.default)[family.tag])
    named = sorted(kinds, key=lambda name: name != usual)
    about = ", ".join(f"{name} (default)" if name == usual else name for name in named)
    shared = frozenset.intersection(*(frozenset(options(kind)) for kind in kinds.values()))
    some = next(iter(kinds.values()))
    yield Section(key, None, about, _flags(some, frozenset(options(some)) - shared))
    yield from _of_class(some, key, seen, frozenset(options(some)) - shared)
    for name, kind in kinds.items():
        yield Section(key, f'{family.tag} = "{name}"', _first(kind), _flags(kind, shared))
        yield from _of_class(kind, key, seen, shared)


def _flags(cls: type, known: frozenset[str]) -> tuple[tuple[str, str], ...]:
    said = {name: re.sub(r"\bNone\b", NOTHING, " ".join(text.split())) for name, text in explained(cls).items()}
    return tuple(
        (f"{name} {_takes(option.annotation)}", f"{said.get(name, '')} {_default(option)}".strip())
        for name, option in options(cls).items()
        if name not in known and not isinstance(section_of(option.annotation), type)
    )


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
