"""What tells recipes apart, by dotted keys."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from equilibria.configuration.recipe import Recipe


def settings(recipe: Recipe) -> dict[str, object]:
    """Every value of a recipe by its dotted key."""
    return _flat("", asdict(recipe))


def first_difference(before: Mapping[str, object], now: Mapping[str, object]) -> tuple[str, str, str] | None:
    """The first key in which two recipes' settings differ, and both values as JSON has them; None where none does."""
    for key, value in before.items():
        if now.get(key) != value:
            return key, _shown(value), _shown(now.get(key))
    return None


def _shown(value: object) -> str:
    return json.dumps(str(value) if isinstance(value, Path) else value, default=str)


def _flat(prefix: str, value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        return {prefix: value}
    below = f"{prefix}." if prefix else ""
    return {key: leaf for name, part in value.items() for key, leaf in _flat(f"{below}{name}", part).items()}
