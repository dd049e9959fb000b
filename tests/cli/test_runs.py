"""`equilibria runs`."""

import json
import shutil
from pathlib import Path

import pytest

from equilibria.cli.app import main
from equilibria.cli.output import age, size_on_disk


@pytest.fixture
def place(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with runs that are finished, damaged and interrupted, the last with a long name."""
    shutil.copytree(run, tmp_path / "runs" / "done")
    damaged = shutil.copytree(run, tmp_path / "runs" / "damaged")
    (damaged / "config.toml").write_text("# sha256 0\n")
    name = "seed=0,learning_rate=0.001,model.depth.solver.method=anderson it's"
    half = shutil.copytree(run, tmp_path / "runs" / "sweep" / name)
    text = (half / "config.toml").read_text().partition("\n")[2]
    (half / "config.toml").write_text(text.replace("steps = 12", "steps = 24"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_table_fits_eighty_columns(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["runs"]) == 0
    shown = capsys.readouterr().out.splitlines()
    rows = [line for line in shown if line.split()[:2] in (["run", "state"], ["interrupted", "12/24"])]
    rows += [line for line in shown if line.startswith(("runs/done", "runs/damaged  "))]
    assert len(rows) == 4
    assert max(map(len, rows)) <= 80
    assert len(set(map(len, rows))) == 1  # right-aligned, one below the other
    assert [line.split()[:2] for line in rows if "done" in line] == [["runs/done", "finished"]]
    assert any("interrupted" in line and "12/24" in line for line in rows)
    long = next(line for line in shown if line.startswith("runs/sweep/"))
    assert long.endswith("method=anderson it's")  # whole, on a line of its own above its figures
    assert shown[shown.index(long) + 1].split()[:2] == ["interrupted", "12/24"]
    assert any(line.startswith("runs/damaged: ") for line in shown)
    assert shown[-1].startswith("resume an interrupted one: equilibria train 'runs/sweep/seed=0,")


def test_json_has_a_row_for_each(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "--json"]) == 0
    runs = {Path(run["run"]).parts[1]: run for run in json.loads(capsys.readouterr().out)["runs"]}
    assert {name: run["state"] for name, run in runs.items()} == {
        "done": "finished",
        "damaged": "damaged",
        "sweep": "interrupted",
    }
    assert runs["sweep"]["resume"].endswith(" --resume")
    assert (runs["done"]["resume"], runs["done"]["step"]) == (None, 12)


def test_without_runs_it_says_how_to_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["runs"]) == 0
    assert "there are no runs in runs; equilibria train RECIPE makes one" in capsys.readouterr().out
    assert main(["runs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"runs": []}
    assert main(["runs", "absent"]) == 2
    assert "absent does not exist; expected a folder of runs" in capsys.readouterr().err


def test_ages_and_sizes_are_short() -> None:
    assert [age(seconds) for seconds in (-3, 59, 61, 7300, 200_000)] == ["now", "now", "1 min", "2 h", "2 d"]
    assert [size_on_disk(size) for size in (900, 12_345, 1_234_567, 2 * 10**9)] == ["1 kB", "12 kB", "1.2 MB", "2.0 GB"]
