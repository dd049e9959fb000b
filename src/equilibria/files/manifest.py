"""Digests of the files of a folder: what tells a flipped byte or a file cut short from what was saved."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from equilibria.errors import UserError
from equilibria.files.durable import write_durably
from equilibria.files.seal import read_sealed_json, sealed_json

MANIFEST = "manifest.json"


def write_manifest(
    folder: Path, only: Sequence[str] | None = None, more: Mapping[str, object] | None = None
) -> dict[str, Any]:
    """Writes the size and SHA-256 of files of a folder into its manifest; returns its content.

    Args:
        folder: where they are.
        only: their names; all files, also those in folders below, when None.
        more: further entries.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    names = [path.relative_to(folder).as_posix() for path in files] if only is None else only
    entries = {name: {"bytes": (folder / name).stat().st_size, "sha256": _digest(folder / name)} for name in names}
    content = {**(more or {}), "files": entries}
    write_durably(folder / MANIFEST, sealed_json(content))
    return content


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder: `files`, and further entries.

    Raises:
        UserError: there is none, or it is damaged.
    """
    content = read_sealed_json(folder / MANIFEST)
    match content:
        case {"files": dict(files)} if all(map(_is_entry, files.values())):
            return content
    raise UserError(f"{folder / MANIFEST} has no sizes and digests of files")


def _is_entry(entry: object) -> bool:
    match entry:
        case {"bytes": int(), "sha256": str(), **more}:
            return not more
    return False


def check_manifest(folder: Path, only: Sequence[str] | None = None) -> dict[str, Any]:
    """Checks that files, all or `only` some, are what they were when the manifest was written; returns its content.

    Raises:
        UserError: one is missing, cut short or changed, or there is no manifest that can be read.
    """
    content = read_manifest(folder)
    for name in content["files"] if only is None else only:
        if name not in content["files"]:
            raise UserError(f"{folder / MANIFEST} does not know {name}")
        entry = content["files"][name]
        _check(folder / name, entry["bytes"], entry["sha256"])
    return content


def _check(path: Path, size: int, digest: str) -> None:
    if not path.is_file():
        raise UserError(f"{path} is missing")
    try:
        found, found_digest = path.stat().st_size, _digest(path)
    except OSError as problem:
        raise UserError(f"{path} cannot be read ({problem})") from problem
    if found != size:
        what = "cut short" if found < size else "added to"
        raise UserError(f"{path} has {found} bytes and was saved with {size}; it was {what}")
    if found_digest != digest:
        raise UserError(f"{path} is not what was saved: its SHA-256 differs")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
