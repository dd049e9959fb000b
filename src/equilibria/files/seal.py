"""Files that carry a digest of their own content: what tells a flipped bit, or an edit, from what was written.

A file that others rely on and that is replaced over and over, in one go, cannot have its digest in a file beside it:
two files do not change at once.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from equilibria.errors import UserError
from equilibria.files.formats import read_json

_SEAL = "sha256"
_WHAT, _WAY_OUT = "SHA-256 of the lines below", "delete this line if you change them"


def sealed_json(content: Mapping[str, object]) -> str:
    """An object as JSON, with the SHA-256 of the rest as its last entry."""
    return json.dumps({**content, _SEAL: _digest(content)}, indent=1) + "\n"


def read_sealed_json(path: Path) -> dict[str, Any]:
    """The object in a file that `sealed_json` wrote; a UserError where that is missing or was changed."""
    content = read_json(path, dict, mend=None)
    if content.pop(_SEAL, None) != _digest(content):
        raise UserError(f"{path} is damaged (its SHA-256 differs)")
    return content


def sealed_toml(text: str) -> str:
    """TOML below a comment with its SHA-256, which says that an edit removes it."""
    return _first_line(text.encode()).decode() + text


def check_toml(path: Path) -> None:
    """Raises a UserError for a TOML file with such a first line that something else follows."""
    try:
        first, newline, rest = path.read_bytes().partition(b"\n")
    except OSError:
        return  # who reads it says so
    is_sealed = any(part.encode() in first for part in (_WHAT, _WAY_OUT))
    if is_sealed and first + newline != _first_line(rest):
        raise UserError(
            f"{path} is not what was written: it was edited, or is damaged; restore it, or delete its first line to "
            f"take it as it is"
        )


def _first_line(rest: bytes) -> bytes:
    return f"# {_WHAT}: {hashlib.sha256(rest).hexdigest()}; {_WAY_OUT}\n".encode()


def _digest(content: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
