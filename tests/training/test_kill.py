"""SIGKILL between two checkpoints, or at any moment, in a real process."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import recovery
from equilibria.cli.app import main
from equilibria.configuration import Recipe, write_recipe
from equilibria.runs.folder import RunFolder
from equilibria.runs.metrics import read_metrics
from processes import environment, training_process
from tiny import TRAINING, tiny_recipe, tiny_task_recipe, tiny_trainer, weights

STEPS, CHECKPOINT, KILL = 120, 40, 45
KILLED_STEPS = 150


def wait_for_step(process: subprocess.Popen[str], metrics: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while not (metrics.exists() and any(line["step"] == step for line in read_metrics(metrics))):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the run did not reach the step in two minutes"
        time.sleep(0.002)


@pytest.mark.parametrize("of", [tiny_recipe, tiny_task_recipe], ids=["text", "task"])
def test_killed_and_resumed_ends_with_the_weights_of_an_undisturbed_run(
    tmp_path: Path, of: Callable[..., Recipe], capsys: pytest.CaptureFixture[str]
) -> None:
    training = replace(TRAINING, steps=STEPS, checkpoint_every=CHECKPOINT, evaluate_every=STEPS, log_every=1)
    killed = of(tmp_path, training, name="killed")
    whole = of(tmp_path, training, name="whole")
    path = tmp_path / "recipe.toml"
    write_recipe(killed, path)
    folder = RunFolder(killed.run.folder)

    process = training_process(path)
    wait_for_step(process, folder.metrics, KILL)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    index = folder.index()
    assert index is not None
    assert index.last == f"step-{CHECKPOINT}", "the kill came too late to fall between these checkpoints"

    assert main(["train", str(path), "--resume"]) == 0
    assert f"resuming from step {CHECKPOINT}" in capsys.readouterr().out

    tiny_trainer(whole).run()
    expected, found = weights(whole), weights(killed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    steps = [line["step"] for line in read_metrics(folder.metrics) if line["kind"] == "train"]
    assert steps == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_twenty_kills_at_any_moment_leave_the_weights_of_an_undisturbed_run(tmp_path: Path) -> None:
    training = replace(TRAINING, steps=KILLED_STEPS, checkpoint_every=3, evaluate_every=25, log_every=1)
    killed, whole = (tiny_recipe(tmp_path, training, name) for name in ("killed", "whole"))
    path = tmp_path / "recipe.toml"
    write_recipe(killed, path)
    command = [sys.executable, str(Path(recovery.__file__)), str(path), "20", "1"]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=800, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    counts = json.loads(ended.stdout.splitlines()[-1])
    assert counts["code"] == 0
    assert counts["kills"] >= 20
    assert counts["saving"] > 0, "no kill fell into a save"
    tiny_trainer(whole).run()
    expected, found = weights(whole), weights(killed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    lines = [line for line in read_metrics(RunFolder(killed.run.folder).metrics) if line["kind"] == "train"]
    assert [line["step"] for line in lines] == list(range(1, KILLED_STEPS + 1))
