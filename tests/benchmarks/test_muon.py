"""`equilibria bench muon`."""

import json
from pathlib import Path

import pytest

from equilibria.cli.app import main


def test_both_take_the_same_steps_on_the_matrices_of_a_recipe(tmp_path: Path) -> None:
    out = tmp_path / "muon.json"
    narrow = ["model.cell.d_model=16", "model.cell.heads=2", "model.cell.inner=24", "model.coda_inner=80"]
    recipe = "laboratory/default"
    assert main(["bench", "muon", recipe, "--steps", "2", "--out", str(out), "--set", *narrow]) == 0
    result = json.loads(out.read_text())
    assert {16, 80} < {side for shape in result["shapes"] for side in shape}
    assert 0 < result["distance"] < 2e-2
    assert set(result["seconds"]) == {"equilibria", "pytorch"}


def test_a_cell_without_matrices_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = "copy-memory/tcn"
    assert main(["bench", "muon", recipe]) == 2
    assert "no matrix of two dimensions" in capsys.readouterr().err
