"""JSON and TOML from files that anyone may have written: what cannot be read is a `UserError` that names the file."""

import json
import os
import stat
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import TypeGuard, TypeVar

from equilibria.errors import UserError

Content = TypeVar("Content")

LARGEST_JSON = 1 << 26
"""Bytes of a JSON file at most: twice the largest published tokenizers. In memory it may be twenty times as large."""
LARGEST_TOML = 1 << 20
"""Bytes of a TOML file at most; the parser's time grows with the square of some of them."""
DEEPEST = 100
"""Tables and lists inside each other at most; what walks through them calls itself as often."""

_KINDS = {dict: "an object", list: "a list", str: "a string", bool: "true or false", int: "a number", float: "a number"}


def read_json(path: Path, kind: type[Content], mend: str | None = "restore it") -> Content:
    """What a JSON file holds: a value of type `kind`, such as `dict`.

    Raises:
        UserError: the file is missing, too large, in another encoding, not JSON, nested too deeply, or holds another
            type of value; `mend` says what to do about it.
    """
    advice = f"; {mend}" if mend else ""
    try:
        content = _read(path, LARGEST_JSON)
    except FileNotFoundError as problem:
        raise UserError(f"{path} is missing{advice}") from problem
    except (OSError, ValueError) as problem:
        raise UserError(f"{path} cannot be read ({_reason(problem)}){advice}") from problem
    try:
        return parse_json(content, kind)
    except ValueError as problem:
        raise UserError(f"{path} is damaged ({problem}){advice}") from problem


def parse_json(content: bytes, kind: type[Content]) -> Content:
    """The JSON value in some bytes.

    Raises:
        ValueError: they are not JSON, nested too deeply or of another type than `kind`.
    """
    try:
        value = json.loads(content.decode("utf-8-sig"))
    except RecursionError as problem:
        raise _too_deep() from problem
    if _is_too_deep(value):
        raise _too_deep()
    if not isinstance(value, kind):
        raise ValueError(f"it is {_KINDS.get(type(value), 'null')}, expected {_KINDS[kind]}")
    return value


def read_toml(path: Path) -> dict[str, object]:
    """The tables of a TOML file.

    Raises:
        UserError: the file is missing, too large, in another encoding, not TOML, or nested too deeply.
    """
    try:
        content = tomllib.loads(_read(path, LARGEST_TOML, pipes=True).decode("utf-8-sig"))
        if _is_too_deep(content):
            raise _too_deep()
    except FileNotFoundError as problem:
        raise UserError(f"{path}: no such file; give the path of a TOML file") from problem
    except (OSError, ValueError, RecursionError) as problem:
        cause = _too_deep() if isinstance(problem, RecursionError) else problem
        raise UserError(f"{path}: cannot be read as TOML: {_reason(cause)}") from problem
    return content


def is_file_name(name: object) -> TypeGuard[str]:
    """Whether it names something inside a folder, and leads nowhere else."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")


def _read(path: Path, most: int, pipes: bool = False) -> bytes:
    """A file's bytes; ValueError for more than `most`. A pipe has no end to wait for."""
    with open(path, "rb", opener=None if pipes else _at_once) as file:
        if not pipes and not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is no file")
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it has more than {most:,} bytes")
    return content


def _at_once(path: str, flags: int) -> int:
    """Opens without waiting for somebody who writes into a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _is_too_deep(value: object) -> bool:
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return False
    return True


def _inside(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _too_deep() -> ValueError:
    return ValueError(f"it is nested deeper than {DEEPEST} levels")


def _reason(problem: Exception) -> str:
    if isinstance(problem, UnicodeDecodeError):
        return "it is not UTF-8 text"
    return (problem.strerror or str(problem)) if isinstance(problem, OSError) else str(problem)
