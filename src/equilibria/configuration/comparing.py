"""What tells recipes apart, by dotted keys."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from equilibria.configuration.recipe import Recipe
from equilibria.configuration.tables import table_of

Settings = Mapping[str, object]
"""Values by dotted keys, in JSON's types."""


def settings(recipe: Recipe) -> dict[str, object]:
    """Every value of a recipe by its dotted key."""
    return _flat("", table_of(recipe))


def differences(before: Settings, now: Settings) -> Iterator[tuple[str, str, str]]:
    """The keys in which two recipes' settings differ, and both values as JSON has them."""
    for key in (*before, *(key for key in now if key not in before)):
        if now.get(key) != before.get(key):
            yield key, json.dumps(before.get(key)), json.dumps(now.get(key))


def run_difference(before: Recipe, now: Recipe) -> str:
    """What else a run was trained with than a recipe says, as `training.steps = 6, not 9`; "" where nothing is.

    Where its folder is does not matter, nor how a path is written.
    """
    found = next(differences(_trained_with(before), _trained_with(now)), None)
    return "" if found is None else f"{found[0]} = {found[1]}, not {found[2]}"


def changes(before: Recipe, now: Recipe) -> str:
    """What a recipe says otherwise than the one before it, as `training.steps = 9 (was 6)`; "" where nothing is.

    Where its folder is does not matter, nor how a path is written.
    """
    found = differences(_trained_with(before), _trained_with(now))
    return ", ".join(f"{key} = {value} (was {was})" for key, was, value in found)


def _trained_with(recipe: Recipe) -> dict[str, object]:
    whole = _flat("", table_of(recipe, lambda path: str(Path(path).resolve())))
    return {key: value for key, value in whole.items() if not key.startswith("run.")}


def _flat(prefix: str, value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        return {prefix: value}
    below = f"{prefix}." if prefix else ""
    return {key: leaf for name, part in value.items() for key, leaf in _flat(f"{below}{name}", part).items()}
