"""`equilibria sweep`: real runs of the smallest recipe, and one that fails."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from equilibria.cli import sweep as module
from equilibria.cli.app import main
from equilibria.runs.folder import RunFolder
from equilibria.training.loop import TrainingLoop

GRID = ("--training.seed", "0,1", "--training.learning_rate", "1e-3,3e-3", "--training.steps", "4")
NAMES = [f"seed={seed},learning_rate={rate}" for seed in (0, 1) for rate in ("1e-3", "3e-3")]


@pytest.fixture
def called(tiny_toml: Path, request: pytest.FixtureRequest) -> tuple[str, ...]:
    """A sweep of a name of its own."""
    return ("sweep", str(tiny_toml), *GRID, "--run.name", request.node.name)


def sweep(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert main([*arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)["runs"]


def states(runs: list[dict[str, Any]]) -> list[object]:
    return [run["state"] for run in runs]


def test_every_combination_is_an_ordinary_run_and_is_not_repeated(
    called: tuple[str, ...], tiny_toml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert states(sweep(capsys, *called, "--list")) == ["not started"] * 4
    runs = sweep(capsys, *called)
    assert [Path(str(run["run"])).name for run in runs] == NAMES
    assert [run["index"] for run in runs] == [0, 1, 2, 3]
    assert runs[2]["settings"] == {"training.learning_rate": 1e-3, "training.seed": 1}
    assert states(runs) == ["finished"] * 4
    assert len({run["best_loss"] for run in runs}) == 4
    alone = ["train", str(tiny_toml), "--run.name", "alone", *["--training.seed", "1", "--training.steps", "4"]]
    assert main([*alone, "--training.learning_rate", "3e-3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["best_loss"] == runs[3]["best_loss"]
    files = {path: path.stat().st_mtime_ns for path in Path(str(runs[0]["run"])).rglob("*")}
    assert sweep(capsys, *called) == runs
    assert {path: path.stat().st_mtime_ns for path in Path(str(runs[0]["run"])).rglob("*")} == files
    # without the grid, all that there is
    listed = sweep(capsys, "sweep", str(tiny_toml), "--run.name", called[-1], "--list")
    assert [(run["run"], run["best_loss"]) for run in listed] == [(run["run"], run["best_loss"]) for run in runs]


@pytest.mark.parametrize("kinds", ["sgd,muon", "muon,sgd"])
def test_a_kind_is_swept_and_keys_of_either_are_shown(
    tiny_toml: Path, capsys: pytest.CaptureFixture[str], kinds: str
) -> None:
    name = kinds.replace(",", "-")
    called = ("sweep", str(tiny_toml), "--training.optimizer", kinds, "--run.name", name, "--training.steps", "4")
    runs = sweep(capsys, *called)
    assert states(runs) == ["finished"] * 2
    shown = ("kind", "beta1", "momentum")
    found = [[run["settings"][f"training.optimizer.{key}"] for key in shown] for run in runs]
    assert sorted(found) == [["muon", 0.9, 0.95], ["sgd", None, 0.0]]
    assert main([*called, "--list"]) == 0
    assert "momentum" in capsys.readouterr().out


def test_an_index_runs_one_combination(
    called: tuple[str, ...], tiny_toml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run,) = sweep(capsys, *called, "--index", "2")
    assert (run["index"], Path(str(run["run"])).name, run["state"]) == (2, NAMES[2], "finished")
    assert states(sweep(capsys, *called, "--list")) == ["not started", "not started", "finished", "not started"]
    assert main([*called, "--index", "4"]) == 2
    assert "--index 4: the sweep has 4 runs, 0 to 3" in capsys.readouterr().err


def test_a_failed_run_is_reported_and_tried_again(
    called: tuple[str, ...], tiny_toml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file where the folder of the second run should be."""
    folder = tiny_toml.parent / "runs" / called[-1]
    folder.mkdir(parents=True)
    (folder / NAMES[1]).write_text("in the way")
    runs = sweep(capsys, *called, code=1)
    assert states(runs) == ["finished", "failed", "finished", "finished"]
    assert "exists already" in str(runs[1]["message"])
    (folder / NAMES[1]).unlink()
    assert main(list(called)) == 0
    printed = capsys.readouterr().out
    assert f"run 1 (2 of 4): {NAMES[1]}" in printed
    assert "run 0 " not in printed
    assert [line.split()[:4] for line in printed.splitlines()[-4:]] == [
        [str(number), rate, seed, "finished"]
        for number, (seed, rate) in enumerate((s, r) for s in "01" for r in ("0.001", "0.003"))
    ]
    assert not list(folder.glob("*.failed"))


def test_an_unexpected_failure_keeps_its_traceback(
    called: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(module, "train", broken)
    (run,) = sweep(capsys, *called, "--index", "0", code=1)
    assert (run["state"], run["message"]) == ("failed", "RuntimeError: out of memory")
    folder = Path(str(run["run"]))
    assert "in broken" in (folder.parent / f"{folder.name}.failed").read_text()


def test_an_interrupted_sweep_stops_and_goes_on(
    called: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        take = TrainingLoop.step

        def stopping(loop: TrainingLoop) -> Tensor:
            loss = take(loop)
            if loop.done == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return loss

        patch.setattr(TrainingLoop, "step", stopping)
        runs = sweep(capsys, *called, code=128 + signal.SIGTERM)
    assert states(runs) == ["unfinished", *["not started"] * 3]
    assert runs[0]["step"] == 3
    runs = sweep(capsys, *called)
    assert states(runs) == ["finished"] * 4
    events = RunFolder(Path(str(runs[0]["run"]))).metrics.read_text()
    assert "resuming from step 3" in events


def test_a_folder_of_another_recipe_is_left_alone(called: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    one = (*called, "--index", "0")
    (before,) = sweep(capsys, *one)
    (after,) = sweep(capsys, *one, "--training.schedule.warmup_steps", "1", code=1)
    assert after["state"] == "other recipe"
    assert "training.schedule.warmup_steps = 2, not 1; remove it or choose another --run.name" in str(after["message"])
    assert sweep(capsys, *one) == [before]


def test_a_damaged_run_is_left_alone_and_the_others_go_on(
    called: tuple[str, ...], tiny_toml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert states(sweep(capsys, *called, "--index", "0")) == ["finished"]
    folder = tiny_toml.parent / "runs" / called[-1]
    (folder / NAMES[1]).mkdir()
    damaged = {folder / NAMES[1] / "config.toml": b"[run", folder / NAMES[0] / "metrics.jsonl": b"\xff\n"}
    for file, content in damaged.items():
        file.write_bytes(content)
    runs = sweep(capsys, *called, code=1)
    assert states(runs) == ["damaged", "damaged", "finished", "finished"]
    assert "metrics.jsonl, line 1 is damaged" in str(runs[0]["message"])
    assert "config.toml: cannot be read as TOML" in str(runs[1]["message"])
    assert {file: file.read_bytes() for file in damaged} == damaged
    whole = ("sweep", str(tiny_toml), "--run.name", called[-1], "--list")
    listed = {Path(str(run["run"])).name: run for run in sweep(capsys, *whole)}
    assert [listed[name]["state"] for name in NAMES] == states(runs)
    settings = listed[NAMES[1]]["settings"]
    assert isinstance(settings, dict)
    assert set(settings.values()) == {None}
    assert main(list(whole)) == 0
    assert "damaged" in capsys.readouterr().out


def test_it_is_not_for_torchrun(
    called: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(list(called)) == 2
    assert "each run in one process" in capsys.readouterr().err


def test_nothing_to_sweep_over(tiny_toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", str(tiny_toml), "--training.seed", "3"]) == 2
    assert "nothing to sweep over" in capsys.readouterr().err
    assert main(["sweep", str(tiny_toml), "--run.name", "absent", "--list"]) == 2
    assert "there are no runs in" in capsys.readouterr().err
