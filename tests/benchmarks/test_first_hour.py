"""`equilibria bench first_hour`."""

import json
import sys
from pathlib import Path

import pytest

from equilibria.cli.app import main


def test_contenders_train_the_same_network_in_turn(tmp_path: Path) -> None:
    out = tmp_path / "first.json"
    command = ["bench", "first_hour", "--tasks", "graph", "--contenders", "default", "jacobian-free", "--out", str(out)]
    assert main([*command, "--seeds", "1", "--steps", "3"]) == 0
    rows = json.loads(out.read_text())["tasks"]["graph"]
    assert set(rows) == {"default", "jacobian-free"}
    for row in rows.values():
        assert len(row["scores"]) == 1
        assert 0 <= row["min"] == row["mean"] == row["max"] <= 1
        assert row["largest_gradient_norm"] > 0


def test_missing_digits_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert main(["bench", "first_hour", "--tasks", "digits", "--contenders", "default", "--steps", "1"]) == 2
    assert "pip install scikit-learn" in capsys.readouterr().err
