"""Several processes that want one run: one of them writes it, and the others are told so."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import contenders
from equilibria.configuration import write_recipe
from processes import environment
from tiny import TRAINING, tiny_recipe


def contend(folder: Path, case: str, steps: int) -> Any:
    training = replace(TRAINING, steps=steps, checkpoint_every=5, evaluate_every=steps, log_every=1)
    write_recipe(tiny_recipe(folder, training), folder / "recipe.toml")
    command = [sys.executable, str(Path(contenders.__file__)), str(folder), case]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


def test_a_run_that_is_alive_is_not_resumed_and_loses_nothing(tmp_path: Path) -> None:
    found = contend(tmp_path, "resumed_alive", 20)
    assert found["second"]["code"] == 2
    said = found["second"]["said"][-1]
    assert f"is being written by process {found['first']['pid']} on " in said
    assert found["first"]["code"] == 0
    assert found["steps"] == list(range(1, 21))


def test_of_two_starts_at_once_one_makes_the_run(tmp_path: Path) -> None:
    for found in contend(tmp_path, "started_twice", 6):
        loser, winner = sorted(found["ends"], key=lambda end: end["code"] == 0)
        assert (winner["code"], loser["code"]) == (0, 2)
        said = loser["said"][-1]
        assert "is being written by" in said or "exists already" in said
        assert found["steps"] == list(range(1, 7))


def test_two_sweeps_share_the_runs(tmp_path: Path) -> None:
    found = contend(tmp_path, "swept_twice", 40)
    assert found["steps"] == [list(range(1, 41))] * 3
    assert found["failed"] == 0
    trained = [line for end in found["ends"] for line in end["said"] if line.startswith("step 40  validation")]
    assert len(trained) == 3, "a run was trained twice"
    # Whoever ends while the other one still trains says so, and that not all is finished.
    assert min(end["code"] for end in found["ends"]) == 0
    for end in found["ends"]:
        assert end["code"] == int(any(" is training it" in line for line in end["said"]))
