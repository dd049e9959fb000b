"""transformers' own tests, where their sources are at hand: none fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from equilibria.cli.bench import bench
from equilibria.errors import UserError

pytest.importorskip("transformers", reason="the extra hf is not installed")


def test_a_folder_without_them_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"no tests/test_modeling_common\.py"):
        bench("transformers_tests", str(tmp_path))


def test_an_unknown_model_is_an_error(tmp_path):
    with pytest.raises(UserError, match="--kinds gpt: no such model"):
        bench("transformers_tests", str(tmp_path), "--kinds", "gpt")


@pytest.mark.skipif(
    "TRANSFORMERS_CHECKOUT" not in os.environ, reason="TRANSFORMERS_CHECKOUT names no checkout of theirs"
)
def test_none_fails():
    """In a process of its own: theirs is a package `tests` too."""
    flags = ["--kinds", "contractive", "--only", "greedy|beam|resize|tied", "--json"]
    command = [sys.executable, "-m", "equilibria", "bench", "transformers_tests", os.environ["TRANSFORMERS_CHECKOUT"]]
    done = subprocess.run([*command, *flags], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (line,) = json.loads(done.stdout.splitlines()[-1])["counts"]
    assert line["counts"]["passed"] >= 10
