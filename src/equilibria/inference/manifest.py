"""Digests of the files of a folder: what tells a flipped byte or a file cut short from what was saved."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from equilibria.durable import write_durably
from equilibria.errors import UserError
from equilibria.seal import read_sealed_json, sealed_json

MANIFEST = "manifest.json"


def write_manifest(folder: Path, only: Sequence[str] | None = None) -> None:
    """Writes the size and SHA-256 of files of a folder into its manifest.

    Args:
        folder: where they are.
        only: their names; all files, those in folders below among them, when None.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    names = [path.relative_to(folder).as_posix() for path in files] if only is None else only
    entries = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": _digest(folder / name)} for name in sorted(names)
    }
    write_durably(folder / MANIFEST, sealed_json({"files": entries}))


def check_manifest(folder: Path, only: Sequence[str] | None = None) -> None:
    """Checks that files are what they were when the manifest was written.

    Args:
        folder: with a manifest.
        only: names of the files to check; all that the manifest knows when None.

    Raises:
        UserError: one is missing, cut short or changed, or there is no manifest that can be read.
    """
    manifest = folder / MANIFEST
    content = read_sealed_json(manifest)
    try:
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in content["files"].items()}
    except (KeyError, TypeError, AttributeError) as problem:
        raise UserError(f"{manifest} is no manifest of a run or a checkpoint") from problem
    for name in expected if only is None else only:
        if name not in expected:
            raise UserError(f"{manifest} does not know {name}")
        _check(folder / name, *expected[name])


def _check(path: Path, size: int, digest: str) -> None:
    if not path.is_file():
        raise UserError(f"{path} is missing")
    try:
        found, found_digest = path.stat().st_size, _digest(path)
    except OSError as problem:
        raise UserError(f"{path} cannot be read ({problem})") from problem
    if found != size:
        raise UserError(f"{path} has {found} bytes and was saved with {size}; it was cut short")
    if found_digest != digest:
        raise UserError(f"{path} is not what was saved: its SHA-256 differs")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
