"""Digests of the files of a folder: what tells a flipped byte or a file cut short from what was saved."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from equilibria.durable import write_durably
from equilibria.errors import UserError
from equilibria.formats import read_json

MANIFEST = "manifest.json"


def write_manifest(folder: Path) -> None:
    """Writes the size and SHA-256 of every file of a folder into its manifest."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    entries = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _digest(path)} for path in files
    }
    write_durably(folder / MANIFEST, json.dumps({"files": entries}, indent=1) + "\n")


def check_manifest(folder: Path, only: Sequence[str] | None = None) -> None:
    """Checks that files are what they were when the manifest was written.

    Args:
        folder: with a manifest.
        only: names of the files to check; all when None.

    Raises:
        UserError: one is missing, cut short or changed, or there is no manifest that can be read.
    """
    manifest = folder / MANIFEST
    try:
        entries = read_json(manifest, dict)["files"]
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in entries.items()}
    except (KeyError, TypeError, AttributeError) as problem:
        raise UserError(f"{manifest} is missing or damaged ({problem})") from problem
    for name in expected if only is None else only:
        path = folder / name
        if name not in expected:
            raise UserError(f"{manifest} does not know {name}")
        if not path.is_file():
            raise UserError(f"{path} is missing")
        size, digest = expected[name]
        if path.stat().st_size != size:
            raise UserError(f"{path} has {path.stat().st_size} bytes and was saved with {size}; it was cut short")
        if _digest(path) != digest:
            raise UserError(f"{path} is not what was saved: its SHA-256 differs")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
