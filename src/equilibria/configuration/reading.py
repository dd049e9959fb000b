"""Recipes from TOML and the command line, and back to TOML."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from cyclopts import UNSET, App, CoercionError, CycloptsError, Parameter
from cyclopts.argument import Argument, ArgumentCollection, update_argument_collection

from equilibria.configuration.explanation import explain
from equilibria.configuration.recipe import Recipe, RunRecipe, problems
from equilibria.errors import UserError
from equilibria.files.durable import write_durably
from equilibria.files.formats import read_toml
from equilibria.files.seal import check_toml, sealed_toml

Settings = Annotated[Recipe, Parameter(name="*", name_transform=lambda name: name)]
"""A recipe as a parameter of a command: each of its fields is a flag."""


def fill_from_file(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Takes from a recipe file what the flags leave open.

    It is the `config` of a command whose first argument is that file.

    Raises:
        UserError: the file is missing or no TOML.
        CycloptsError: a key is unknown, or a section is not a table.
    """
    del app, commands
    given = arguments[0].tokens
    if given:
        fill(arguments, Path(given[0].value))


def fill(arguments: ArgumentCollection, path: Path, place: RunRecipe | None = None) -> None:
    """Takes from a recipe file what the flags leave open.

    Args:
        arguments: of the command, with its flags.
        path: the file.
        place: where the run is, whatever the file says of it.

    Raises:
        UserError: the file is missing or no TOML.
        CycloptsError: a key is unknown, or a section is not a table.
    """
    check_toml(path)
    content = read_toml(path)
    _fill(arguments, content if place is None else {**content, "run": recipe_tables(place)}, str(path))


class _Settings(ArgumentCollection):
    """Finds a setting by its name at once; looking through hundreds of them for each key of a file takes a while."""

    def __init__(self, settings: Iterable[Argument]) -> None:
        super().__init__(settings)
        self._by_name = {name: argument for argument in self for name in argument.names}

    def match(
        self, term: str | int, *, transform: Callable[[str], str] | None = None, delimiter: str = "."
    ) -> tuple[Argument, tuple[str, ...], Any]:
        found = self._by_name.get(term) if isinstance(term, str) and transform is None else None
        return super().match(term, transform=transform, delimiter=delimiter) if found is None else (found, (), UNSET)


def _fill(arguments: ArgumentCollection, content: dict[str, object], source: str) -> None:
    settings = _Settings(argument for argument in arguments if argument.keys)
    update_argument_collection(content, source, settings, root_keys=(), allow_unknown=False)
    for argument in settings:
        if is_dataclass(argument.hint) and argument.tokens:
            raise CoercionError(argument=argument, token=argument.tokens[0])


def check_recipe(recipe: Recipe, path: Path | str) -> None:
    """Raises a UserError that names `path`, where the recipe came from, if its values do not go together."""
    for problem in problems(recipe):
        raise UserError(f"{path}: {problem}")
    for line in _table(recipe, ()):
        try:
            line.encode("utf-8")
        except UnicodeEncodeError as problem:
            raise UserError(
                f"{path}: {line!a} has characters that the locale's encoding lacks; set PYTHONUTF8=1"
            ) from problem


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a TOML file.

    Args:
        path: the file.
        overrides: flags that have the last word, as on the command line: `["--training.steps", "10"]`.

    Raises:
        UserError: one line that names the file or flag, the key, what was expected and the nearest right one.
    """
    try:
        recipe = _reader([str(path), *overrides], exit_on_error=False, print_error=False)
    except CycloptsError as problem:
        raise UserError(explain(problem)) from problem
    check_recipe(recipe, path)
    return recipe


class _Reader(App):
    """An app whose arguments are worked out once for all that it reads: a recipe has hundreds."""

    def assemble_argument_collection(self, **options: Any) -> ArgumentCollection:
        assert self.default_command is not None
        unused = _arguments(self.default_command)
        copies = {id(argument): copy(argument) for argument in unused}
        for argument in copies.values():
            argument.tokens = []
            argument.children = ArgumentCollection(copies[id(child)] for child in argument.children)
        return ArgumentCollection(copies.values())


@lru_cache
def _arguments(command: Callable[..., Recipe]) -> ArgumentCollection:
    return _app(App, command).assemble_argument_collection()


def _app(kind: type[App], command: Callable[..., Recipe], config: Any = ()) -> App:
    """Reads what `command` takes, from flags and with `config`."""
    options: dict[str, Any] = {"help_flags": [], "version_flags": [], "result_action": "return_value"}
    app = kind(config=config, default_parameter=Parameter(negative=()), **options)
    app.default(command)
    return app


def _read(file: Path, /, *, recipe: Settings) -> Recipe:
    del file
    return recipe


_reader = _app(_Reader, _read, fill_from_file)


def recipe_from(content: dict[str, object], source: str) -> Recipe:
    """The recipe in nested tables, as `recipe_tables` gives them.

    Args:
        content: its sections.
        source: where they are from, for messages.

    Raises:
        UserError: as `read_recipe`.
    """
    reader = _app(_Reader, _whole, lambda app, commands, arguments: _fill(arguments, content, source))
    try:
        recipe = reader([], exit_on_error=False, print_error=False)
    except CycloptsError as problem:
        raise UserError(explain(problem)) from problem
    check_recipe(recipe, source)
    return recipe


def _whole(*, recipe: Settings) -> Recipe:
    return recipe


def recipe_tables(section: object) -> dict[str, object]:
    """The settings of a recipe or of a section of one as nested tables that the json module writes."""
    assert is_dataclass(section)
    values = {entry.name: _plain(getattr(section, entry.name)) for entry in fields(section)}
    return {name: value for name, value in values.items() if value is not None and value != {}}


def _plain(value: object) -> object:
    if is_dataclass(value):
        return recipe_tables(value)
    if isinstance(value, tuple):
        return list(map(_plain, value))
    return str(value) if isinstance(value, Path) else value


def write_recipe(recipe: Recipe, path: Path, sealed: bool = False) -> None:
    """Writes every setting of a recipe as TOML; `read_recipe` of the file gives an equal recipe.

    Args:
        recipe: the recipe.
        path: the file, which is replaced.
        sealed: below a line with the digest of the rest, so that a change is noticed.
    """
    text = "\n".join(_table(recipe, ())).lstrip() + "\n"
    write_durably(path, sealed_toml(text) if sealed else text)


def _table(section: object, keys: tuple[str, ...]) -> Iterator[str]:
    """Lines of a section: its own values first, as TOML demands, then its subsections."""
    assert is_dataclass(section)
    values = {entry.name: getattr(section, entry.name) for entry in fields(section)}
    own = {name: value for name, value in values.items() if not is_dataclass(value) and value is not None}
    if own:
        yield from ("", f"[{'.'.join(keys)}]")
    for name, value in own.items():
        yield f"{name} = {_literal(value)}"
    for name, value in values.items():
        if is_dataclass(value):
            yield from _table(value, (*keys, name))


def _literal(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case str() | Path():
            # A JSON string is a TOML string, but for one control character that JSON leaves as it is.
            return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
        case tuple():
            return f"[{', '.join(map(_literal, value))}]"
    raise TypeError(f"no TOML for {value!r}")
