"""`equilibria bench accelerator` on a CPU: every contender, every figure, and what no time is left for."""

import json
from pathlib import Path

import pytest

from equilibria.cli.app import main


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_all_figures_are_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "found.json"
    flags = ["--device", "cpu", "--widths", "32", "--precisions", "float32", "--rounds", "1", "--tokens", "3"]
    assert main(["bench", "accelerator", *flags, "--seconds", "1e-9", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["settings"] == []
    assert found["left_out"] == ["width 32, float32, eager", "width 32, float32, compiled"]
    assert all(check["ok"] for check in found["checks"])
    assert main(["bench", "accelerator", *flags, "--out", str(out)]) == 0
    eager, compiled = json.loads(out.read_text())["settings"]
    rows = eager["rows"]
    assert {"equilibrium", "twin", "transformer-xl"} <= rows.keys()
    assert rows["twin"]["step_over_twin"]["median"] == 1
    assert rows["equilibrium"]["saved_bytes"] < rows["twin"]["saved_bytes"]
    assert rows["equilibrium"]["evaluations"]["mean"] > 1
    assert rows["equilibrium"]["spectral_radius"]["median"] > 0
    assert rows["equilibrium"]["waits_of_a_step"] > rows["twin"]["waits_of_a_step"] > 0
    assert "failed" in compiled or compiled["rows"].keys() == rows.keys()
    shown = capsys.readouterr().out
    assert "left out, as the time was up: width 32, float32, eager" in shown
    assert max(map(len, shown.splitlines())) <= 80
