"""Manifests: whatever one holds, it is what was saved or an error that names it."""

import re
from pathlib import Path
from typing import Any

import pytest

from equilibria.errors import UserError
from equilibria.files.manifest import MANIFEST, check_manifest, write_manifest
from equilibria.files.seal import sealed_json


def test_a_manifest_is_of_the_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    written = write_manifest(tmp_path, more={"kind": "text"})
    assert check_manifest(tmp_path) == written
    assert (written["kind"], written["files"]["file"]["bytes"]) == ("text", 7)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"files": []},
        {"files": {"file": 7}},
        {"files": {"file": {"bytes": 7}}},
        {"files": {"file": {"bytes": "7", "sha256": "0"}}},
        {"files": {"file": {"bytes": 7, "sha256": None}}},
        {"files": {"file": {"bytes": 7, "sha256": "0", "more": 1}}},
    ],
)
def test_a_manifest_that_holds_something_else_is_named(content: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    (tmp_path / MANIFEST).write_text(sealed_json(content))
    with pytest.raises(UserError, match=re.escape(f"{tmp_path / MANIFEST} has no sizes and digests of files")):
        check_manifest(tmp_path)
