"""`equilibria bench decode` and `equilibria bench tradeoff`, on the smallest real run."""

import json
from pathlib import Path

import pytest

from equilibria.cli.app import main


def test_decoding_is_measured_against_both_rivals(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--contexts", "24", "--batches", "1", "2", "--tokens", "4", "--afresh", "2", "--json"]
    assert main(["bench", "decode", "--run", str(run), *flags]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [one["batch"] for one in result["settings"]] == [1, 2]
    for one in result["settings"]:
        assert one["cache_bytes"]["twin"] == 18 * one["cache_bytes"]["model"]
        assert set(one["tokens_per_second"]) == {"cold", "warm", "afresh", "twin"}
        assert one["evaluations_per_token"]["cold"] >= 1
        assert one["over_twin"] > 0
    assert result["agreement"]["1e-06"] < 1e-4


def test_the_tradeoff_is_drawn(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture, out = tmp_path / "tradeoff.svg", tmp_path / "tradeoff.json"
    flags = ["--tokens", "200", "--segment-length", "100", "--rows", "1", "--picture", str(picture), "--out", str(out)]
    assert main(["bench", "tradeoff", str(run), *flags]) == 0
    assert "perplexity" in capsys.readouterr().out
    points = json.loads(out.read_text())["points"]
    assert {point["rule"] for point in points} == {"converged", "unchanged", "budget", "together"}
    costs = [point["evaluations_per_token"] for point in points if point["rule"] == "converged"]
    assert costs == sorted(costs)
    assert "</svg>" in picture.read_text()
