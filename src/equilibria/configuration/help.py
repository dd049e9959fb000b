"""What `--help` says of a recipe's settings: every key as a flag, with its explanation and its default."""

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from rich.console import Console
from rich.table import Table
from rich.text import Text

from equilibria.configuration.kinds import REQUIRED, Family, alternatives, explained, options, section_of
from equilibria.configuration.recipe import Recipe
from equilibria.configuration.tables import table_of

Setting = tuple[str, str]
"""A flag with what it takes, and what there is to say of it."""


def print_settings(console: Console) -> None:
    """Prints all sections."""
    console.print(
        "\nSettings of a recipe. Each is a key of the file and a flag; a flag has the last word.", style="bold"
    )
    console.print("--unset KEY takes a key out of the file. A kind of your own is package.module:Class.\n")
    for title, text, settings in sections():
        table = Table.grid(padding=(0, 2))
        table.add_column(max_width=34, overflow="fold")
        table.add_column()
        for flag, explanation in settings:
            table.add_row(Text(flag), Text(explanation))
        console.print(Text(title, style="bold"))
        if text:
            console.print(Text(f"  {text}"))
        console.print(table)
        console.print()


def sections() -> Iterator[tuple[str, str, list[Setting]]]:
    """Title, explanation and settings of every section, and of every kind that it may be."""
    yield from _of_class(Recipe, "", "recipe")


def _of_class(
    cls: type, key: str, title: str, family: Family | None = None
) -> Iterator[tuple[str, str, list[Setting]]]:
    own, inner = [], []
    texts = explained(cls)
    supplied = frozenset() if family is None else family.supplied
    for option in options(cls, supplied).values():
        below = f"{key}.{option.name}" if key else option.name
        section = section_of(option.annotation)
        if section is not None:
            inner.append((below, section))
        if section is None or isinstance(section, Family):
            own.append((f"--{below} {_takes(option.annotation)}", _text(texts.get(option.name, ""), option.default)))
    if own and key:
        yield title, _first(cls), own
    for below, section in inner:
        if not isinstance(section, Family):
            yield from _of_class(section, below, below)
            continue
        for kind, member in section.kinds().items():
            if not _is_inside(below, kind):
                yield from _of_class(member, below, f"{below}, {section.tag} {kind}", section)


def _is_inside(key: str, kind: str) -> bool:
    """Whether a section of sections is left out, whose kinds stand elsewhere: solvers of solvers and of gradients."""
    return key.count("solver") > 1 or (".gradient." in key and key.endswith("solver")) or key.endswith("fallback")


def _takes(annotation: Any) -> str:
    section = section_of(annotation)
    if isinstance(section, Family):
        return "KIND"
    names = {int: "INT", float: "FLOAT", bool: "true|false", str: "TEXT"}
    choices = [str(c) for m in alternatives(annotation) if get_origin(m) is Literal for c in get_args(m)]
    return "|".join(choices) or next((names[m] for m in alternatives(annotation) if m in names), "VALUE")


def _text(explanation: str, default: Any) -> str:
    line = " ".join(explanation.split())
    if default is REQUIRED:
        return f"{line} [required]"
    shown = table_of(default)
    shown = next(iter(shown.values()), "") if isinstance(shown, dict) else shown
    shown = {None: "none", True: "true", False: "false"}.get(shown, shown) if not isinstance(shown, list) else shown
    return f"{line} [default: {shown}]"


def _first(cls: type) -> str:
    """The first sentence of a docstring."""
    text = " ".join((cls.__doc__ or "").partition("\n\n")[0].split())
    return text
