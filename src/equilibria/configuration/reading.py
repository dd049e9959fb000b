"""Recipes from TOML and the command line, and back to TOML.

A recipe file is laid over the defaults of its sections, and flags over both: `--training.steps 10` has the last word.
"""

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from equilibria.configuration.building import check_fit
from equilibria.configuration.kinds import REQUIRED, options
from equilibria.configuration.recipe import Recipe, RunRecipe
from equilibria.configuration.shipped import recipe_file
from equilibria.configuration.tables import ITSELF, Keys, Maker, Table, Written, table_of
from equilibria.errors import Problems, UserError
from equilibria.files.durable import write_durably
from equilibria.files.formats import read_toml
from equilibria.files.seal import check_toml, sealed_toml


def read_recipe(path: Path | str, flags: Sequence[str] = (), run: RunRecipe | None = None) -> Recipe:
    """The recipe in a TOML file, or of the package.

    Args:
        path: of a file; or the name of a recipe of the package, such as `english-4m/default`.
        flags: what has the last word, as on the command line: `["--training.steps", "10"]`; `--unset KEY` takes a key
            out of the file.
        run: where the run is, whatever the file says.

    Raises:
        UserError: a line for everything that is wrong, with file or flag, key, what was expected and the nearest key.
    """
    if isinstance(flags, str | Mapping):
        raise UserError(f'flags must be a list of words, such as ["--training.steps", "10"]; found {flags!r}')
    file = recipe_file(path)
    check_toml(file)
    content = read_toml(file)
    if run is not None:
        content["run"] = table_of(run)
    return recipe_from(content, str(path), flags)


def checked(recipe: Recipe, flags: Sequence[str] = ()) -> Recipe:
    """A recipe as its file would give it again, changed by flags; raises what `read_recipe` does, also for what a file
    cannot hold."""
    try:
        content = table_of(recipe)
    except ValueError as problem:
        raise UserError(f"recipe: {problem}") from problem
    return recipe_from(content, "recipe", flags)


def recipe_from(content: Table, source: str, arguments: Sequence[str] = ()) -> Recipe:
    """The recipe in tables as `table_of` gives them, which may lack anything; raises what `read_recipe` does, about
    the `source` or a flag among the arguments."""
    given: dict[str, list[list[str]]] = {}
    for key, values in read_flags(arguments):
        given.setdefault(key, []).append(values)
    flags = {key: Written(values) for key, values in given.items()}
    unset = flags.pop("unset", Written())
    if [] in unset:
        raise UserError("--unset has no value: expected a key of the file")
    for key in unset.all:
        _unset(content, key.removeprefix("--"), source)
    maker = Maker()
    try:
        recipe = maker.make(Recipe, REQUIRED, [content, _nested(flags)])
        if (model := recipe.model.check()) is not None:
            check_fit(model, recipe.data)
        recipe_text(recipe).encode()
    except UnicodeEncodeError as problem:
        odd = problem.object[problem.start - 20 : problem.end + 20]
        raise UserError(f"{source}: {odd!a} has characters that the locale lacks; set PYTHONUTF8=1") from problem
    except Problems as problems:
        raise UserError(*(_line(keys, text, source, flags) for keys, text in problems.found)) from problems
    except ValueError as problem:
        raise UserError(f"{source}: {problem}") from problem
    if maker.dropped:
        keys = ", ".join(map(".".join, maker.dropped))
        warnings.warn(f"ignoring {keys} of {source}: the kind that a flag chose has no such key", stacklevel=2)
    return recipe


def _line(keys: Keys, text: str, source: str, flags: Mapping[str, Any]) -> str:
    """One problem: `--section.key …` for a flag, `FILE: section.key …` for a key in a file."""
    key = ".".join(keys)
    of_value = text.startswith(("=", "is "))  # else it may be what an object says of its options, and names them
    unknown = "no such key" in text  # and with it all below it
    words = [] if of_value else re.findall(r"\w+(?:\.\w+)*", text)
    named = (f"{key}.{word}".lstrip(".") for word in words)
    if option := next((option for option in named if option in flags), None):
        where = f"--{option}"
    elif any(f"{key}.".startswith(f"{flag}.") or (unknown and flag.startswith(f"{key}.")) for flag in flags):
        where = f"--{key}"
    else:
        where = f"{source}: {key}" if key else source
    return f"{where}{' ' if of_value else ': '}{text}"


SHORT_KEYS = {
    "name": "run.name",
    "steps": "training.steps",
    "lr": "training.learning_rate",
    "batch_size": "training.batch_size",
    "seed": "training.seed",
    "device": "training.device",
}
"""Flags that stand for longer keys."""


def read_flags(arguments: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The key of each flag, in which dashes are underscores, and the values behind it; a UserError for an argument
    without a flag."""
    found: list[tuple[str, list[str]]] = []
    for argument in arguments:
        key, equals, value = argument.removeprefix("--").partition("=")
        if argument.startswith("--help"):
            raise UserError(f"{argument}: no such flag; --help all explains everything, --help SECTION a part of it")
        if argument.startswith("--") and "" not in key.split("."):
            key = key.replace("-", "_")
            found.append((SHORT_KEYS.get(key, key), [value] if equals else []))
        elif argument.startswith("--") or not found:
            raise UserError(f"{argument}: unexpected argument; {_as_flag(argument)}")
        else:
            found[-1][1].append(argument)
    return found


def _as_flag(argument: str) -> str:
    """How something is given that looks like a key."""
    key, equals, _ = argument.lstrip("-").partition("=")
    if "" in key.split("."):
        return "see --help"
    if equals or argument.startswith("-") or key.partition(".")[0] in {*SHORT_KEYS, *options(Recipe)}:
        named = {"o": "run.directory", "n": "training.steps", "d": "training.device"}.get(key, key)
        return f"a key of the recipe is a flag: --{named} VALUE"
    return "one recipe is given, and flags after it; see --help"


def _nested(flags: Mapping[str, Written]) -> Table:
    """Dotted keys as nested tables, each value below `ITSELF`: a section's kind may stand beside its options."""
    table: Table = {}
    for key, value in flags.items():
        inner = table
        for section in key.split("."):
            inner = inner.setdefault(section, {})
        inner[ITSELF] = value
    return table


def _unset(content: Table, key: str, source: str) -> None:
    *sections, name = key.split(".")
    inner: Any = content
    for section in sections:
        inner = inner.get(section) if isinstance(inner, dict) else None
    if not isinstance(inner, dict) or name not in inner:
        alone = "; give the key without a value" if "=" in key else ""
        raise UserError(f"--unset {key}: {source} does not set it{alone}")
    del inner[name]


def write_recipe(recipe: Recipe, path: Path | str, sealed: bool = False) -> None:
    """Writes every setting of a recipe as TOML; `read_recipe` of the file gives a recipe of the same `table_of`.

    `sealed` adds a first line with the digest of the rest, so that a change is noticed.
    """
    text = recipe_text(recipe)
    write_durably(Path(path), sealed_toml(text) if sealed else text)


def recipe_text(recipe: Recipe) -> str:
    """A recipe as TOML."""
    return toml_text(table_of(recipe))


def toml_text(table: Table, *keys: str) -> str:
    """A table as TOML, below some keys."""
    return "\n".join(_lines(table, keys)).lstrip() + "\n"


def _lines(table: Mapping[str, Any], keys: Keys) -> Iterator[str]:
    """Lines of a section: its own values first, as TOML demands, then its subsections."""
    own = {name: value for name, value in table.items() if not isinstance(value, dict) and value is not None}
    inner = {name: value for name, value in table.items() if isinstance(value, dict)}
    if keys and (own or not inner):
        yield from ("", f"[{'.'.join(map(_key, keys))}]")
    for name, value in own.items():
        yield f"{_key(name)} = {_literal(value)}"
    for name, value in inner.items():
        yield from _lines(value, (*keys, name))


def _key(name: str) -> str:
    return name if name.isascii() else _literal(name)


def _literal(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, float):
        return float.__repr__(value)
    # What else JSON writes, TOML reads, but for one control character that JSON leaves as it is.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
