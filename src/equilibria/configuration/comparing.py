"""What tells recipes apart, by dotted keys."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from equilibria.configuration.recipe import Recipe


def settings(recipe: Recipe) -> dict[str, object]:
    """Every value of a recipe by its dotted key."""
    return _flat("", asdict(recipe))


def first_difference(before: Mapping[str, object], now: Mapping[str, object]) -> tuple[str, str, str] | None:
    """The first key in which two recipes' settings differ, and both values as JSON has them; None where none does."""
    return next(_differences(before, now), None)


def run_difference(before: Recipe, now: Recipe) -> str:
    """What else a run was trained with than a recipe says, as `training.steps = 6, not 9`; "" where nothing is.

    Where its folder is does not matter, nor how a path is written.
    """
    found = first_difference(_trained_with(before), _trained_with(now))
    return "" if found is None else f"{found[0]} = {found[1]}, not {found[2]}"


def changes(before: Recipe, now: Recipe) -> str:
    """What a recipe says otherwise than the one before it, as `training.steps = 9 (was 6)`; "" where nothing is.

    Where its folder is does not matter, nor how a path is written.
    """
    found = _differences(_trained_with(before), _trained_with(now))
    return ", ".join(f"{key} = {value} (was {was})" for key, was, value in found)


def _differences(before: Mapping[str, object], now: Mapping[str, object]) -> Iterator[tuple[str, str, str]]:
    for key, value in before.items():
        if now.get(key) != value:
            yield key, _shown(value), _shown(now.get(key))


def _trained_with(recipe: Recipe) -> dict[str, object]:
    return {key: _resolved(value) for key, value in settings(recipe).items() if not key.startswith("run.")}


def _resolved(value: object) -> object:
    if isinstance(value, tuple):
        return tuple(map(_resolved, value))
    return value.resolve() if isinstance(value, Path) else value


def _shown(value: object) -> str:
    return json.dumps(str(value) if isinstance(value, Path) else value, default=str)


def _flat(prefix: str, value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        return {prefix: value}
    below = f"{prefix}." if prefix else ""
    return {key: leaf for name, part in value.items() for key, leaf in _flat(f"{below}{name}", part).items()}
