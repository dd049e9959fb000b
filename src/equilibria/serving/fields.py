"""The fields of a JSON object, read: each is of its type and in its range, or named in an error; none is left."""

from __future__ import annotations

import json
from typing import Any

from equilibria.serving.errors import ApiError, invalid


def parse_json(body: bytes) -> dict[str, Any]:
    """The JSON object of a request.

    Raises:
        ApiError: it is none.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise invalid(None, f"the body is not UTF-8: {problem}") from problem
    try:
        content = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_unique)
    except RecursionError as problem:
        raise invalid(None, "the body is nested too deeply") from problem
    except ValueError as problem:
        raise invalid(None, f"the body is not JSON: {problem}") from problem
    if not isinstance(content, dict):
        raise invalid(None, f"the body must be a JSON object, found {_kind(content)}")
    return content


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not valid JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("duplicate key")
    return content


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
    return "an object"


class Fields:
    """The fields of an object, taken one by one; `null` counts as not there."""

    def __init__(self, content: dict[str, Any]) -> None:
        self._left = dict(content)

    def take(self, name: str) -> Any:
        """A field as it is; None where it is not there."""
        return self._left.pop(name, None)

    def finish(self) -> None:
        """Raises ApiError for what nobody has taken."""
        if self._left:
            name = min(self._left)
            shown = (
                name[:80].encode("utf-8", "replace").decode()
            )  # halves of surrogate pairs have no place in an answer
            raise ApiError(400, f"{name!r:.80} is not a field of a completion request", shown, "unknown_field")

    def boolean(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.take(name)
        if value is not None and not isinstance(value, bool):
            raise invalid(name, f"{name} must be true or false, found {_kind(value)}")
        return default if value is None else value

    def integer(self, name: str, least: int, most: int) -> int | None:
        """A whole number within bounds."""
        value = self.take(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise invalid(name, f"{name} must be an integer, found {_kind(value)}")
        if not least <= value <= most:
            raise invalid(name, f"{name} must be from {least} to {most}, found {_short(value)}")
        return value

    def number(self, name: str, least: float, most: float, open_below: bool = False) -> float | None:
        """A finite number within bounds; the lower one excluded if `open_below`."""
        value = self.take(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise invalid(name, f"{name} must be a number, found {_kind(value)}")
        if not least <= value <= most or (open_below and value == least):
            bounds = f"above {least:g} and at most {most:g}" if open_below else f"from {least:g} to {most:g}"
            shown = f"{value:g}" if isinstance(value, float) else _short(value)
            raise invalid(name, f"{name} must be {bounds}, found {shown}")
        return float(value)

    def string(self, name: str) -> str | None:
        """Text that UTF-8 can hold."""
        value = self.take(name)
        return None if value is None else checked_text(name, value)

    def texts(self, name: str, most: int, longest: int) -> tuple[str, ...]:
        """A string, or a list of some; none of them empty."""
        value = self.take(name)
        if value is None:
            return ()
        values = value if isinstance(value, list) else [value]
        if len(values) > most:
            raise invalid(name, f"{name} takes at most {most} strings, found {len(values)}")
        found = tuple(checked_text(name, one) for one in values)
        if any(not 0 < len(one) <= longest for one in found):
            raise invalid(name, f"{name} must be of 1 to {longest} characters each")
        return found

    def refuse(self, name: str, *harmless: object) -> None:
        """A field of the protocol that is not supported, unless it says what would be done anyway."""
        value = self.take(name)
        if value is not None and not any(type(value) is type(one) and value == one for one in harmless):
            raise ApiError(400, f"{name} is not supported by this server; leave it out", name, "unsupported_field")


def checked_text(name: str, value: object) -> str:
    """A string without halves of surrogate pairs.

    Raises:
        ApiError: it is none.
    """
    if not isinstance(value, str):
        raise invalid(name, f"{name} must be a string, found {_kind(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as problem:
        raise invalid(name, f"{name} holds half of a surrogate pair at character {problem.start}") from problem
    return value


def _short(value: int) -> str:
    return str(value) if abs(value) < 10**18 else "a number of more than 18 digits"
