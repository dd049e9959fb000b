import json
from pathlib import Path

import pytest

from equilibria.errors import UserError
from equilibria.runs.metrics import MetricsWriter, read_metrics


def write(path: Path, steps: range) -> None:
    writer = MetricsWriter(path, steps.start)
    for step in steps:
        writer.write("train", step, {"loss": 1.0 / (step + 1)})
    writer.close()


def test_every_line_is_there_at_once(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path / "metrics.jsonl", 0)
    writer.write("valid", 3, {"loss": 2.5, "residual": None})
    (line,) = read_metrics(tmp_path / "metrics.jsonl")
    assert (line["kind"], line["step"], line["loss"], line["residual"]) == ("valid", 3, 2.5, None)
    writer.close()


def test_resuming_cuts_what_came_after_the_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, range(10))
    write(path, range(5, 8))
    assert [line["step"] for line in read_metrics(path)] == [0, 1, 2, 3, 4, 5, 5, 6, 7]


def test_a_line_cut_short_by_a_kill_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, range(3))
    path.write_text(path.read_text() + '{"kind": "tra')
    write(path, range(2, 4))
    assert [line["step"] for line in read_metrics(path)] == [0, 1, 2, 2, 3]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1}) + "\nnonsense\n")
    with pytest.raises(UserError, match="line 2"):
        read_metrics(path)
    path.write_bytes(b'{"step": 1}\n{"step": 2, "loss": \xff}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2 is damaged .* delete that line"):
        read_metrics(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_metrics(tmp_path)
