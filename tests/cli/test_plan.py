"""`equilibria plan`."""

import json
from pathlib import Path

import pytest

from equilibria.cli.app import main


def test_lines_for_a_person(
    tiny_toml: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["plan", str(tiny_toml), "--training.averaging", "exponential"]) == 0
    printed = capsys.readouterr()
    for part in ("parameters", "embedding", "averaged weights", "backward pass", "tokens per second", "12 steps"):
        assert part in printed.out
    assert all(len(line) <= 80 for line in printed.out.splitlines())
    assert "measuring a step of 1 row of 16 tokens" in printed.err


def test_json_and_flags(tiny_toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(tiny_toml), "--training.batch_size", "3", "--seconds", "20", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["step"] == {"micro_batches": 1, "rows": 3, "length": 16}
    assert found["parameters"]["total"] == found["parameters"]["embedding"] + found["parameters"]["cell"]
    assert found["tokens_per_second"] > 0
    assert found["memory"]["total"] > 0


def test_without_the_text(tiny_toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    absent = ["plan", str(tiny_toml), "--data.path", str(tiny_toml.parent / "absent")]
    assert main(absent) == 2
    assert "without the text `equilibria plan` takes --vocabulary N" in capsys.readouterr().err
    assert main([*absent, "--vocabulary", "300", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"]["embedding"] == 300 * 16


def test_a_task_has_tokens_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "copy-memory/lstm", "--vocabulary", "77"]) == 2
    said = "error: --vocabulary: copy memory is a task, with tokens of its own; omit the flag\n"
    assert capsys.readouterr().err == said
    assert main(["plan", "reversal", "--data.symbols", "1"]) == 2
    assert capsys.readouterr().err.endswith("reversal: data: held_out must be between 1 and 7, found 2000\n")


def test_pairs_of_sequences(capsys: pytest.CaptureFixture[str]) -> None:
    """An encoder-decoder has no memory, and does no pass without a target."""
    assert main(["plan", "reversal", "--seconds", "0.01", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["memory"]["saved"] > 0
    assert found["memory"]["segments"] == 0
    assert found["measured"]["evaluations"] is None
