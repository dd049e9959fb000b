"""How recipes differ, by dotted keys."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from equilibria.configuration.recipe import Recipe
from equilibria.configuration.tables import table_of

Settings = Mapping[str, object]  # values by dotted keys, in JSON's types


def settings(recipe: Recipe) -> dict[str, object]:
    """Every value of a recipe by its dotted key."""
    return dict(_flat("", table_of(recipe)))


def differences(before: Settings, now: Settings) -> Iterator[tuple[str, str, str]]:
    """The keys in which two recipes' settings differ, and both values as JSON has them."""
    for key in {**before, **now}:
        was, value = json.dumps(before.get(key)), json.dumps(now.get(key))
        if was != value and before.get(key) != now.get(key):  # 1 is 1.0, and NaN is NaN
            yield key, was, value


def run_difference(before: Recipe, now: Recipe) -> str:
    """The first, as `training.steps = 6, not 9`, or ""; ignores the run's folder and how paths are written."""
    return next((f"{key} = {was}, not {value}" for key, was, value in _trained_differently(before, now)), "")


def changes(before: Recipe, now: Recipe) -> str:
    """All of them, as `training.steps = 9 (was 6)`."""
    return ", ".join(f"{key} = {value} (was {was})" for key, was, value in _trained_differently(before, now))


def _trained_differently(*recipes: Recipe) -> Iterator[tuple[str, str, str]]:
    whole = (table_of(recipe, lambda path: str(Path(path).resolve())) | {"run": None} for recipe in recipes)
    return differences(*(dict(_flat("", table)) for table in whole))


def _flat(key: str, value: object) -> Iterator[tuple[str, object]]:
    if not isinstance(value, dict):
        yield key, value
        return
    for name, part in value.items():
        yield from _flat(f"{key}.{name}" if key else name, part)
