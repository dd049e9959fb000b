"""Runs started by torchrun: a worker is killed and all are started again; SIGTERM saves and leaves."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from equilibria.configuration import Recipe, TrainingRecipe, write_recipe
from equilibria.runs.folder import RunFolder
from equilibria.runs.metrics import read_metrics
from equilibria.training.parallel import Strategy
from equilibria.training.preparation import claimed, furnish_run, made_before
from processes import environment, run_cases
from tiny import TRAINING, tiny_recipe, tiny_trainer

pytestmark = pytest.mark.slow
LONG = replace(TRAINING, steps=100, batch_size=4, checkpoint_every=10, evaluate_every=50, log_every=1)


def started(path: Path, workers: int, *flags: str) -> subprocess.Popen[str]:
    """`torchrun ... -m equilibria train`, in a process group of its own."""
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={workers}", "--max-restarts=3"]
    # The store of a start that failed is not to be found by the next one.
    disabled = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return subprocess.Popen(
        [
            *launcher,
            "--rdzv-backend=c10d",
            "--rdzv-endpoint=localhost:0",
            "-m",
            "equilibria",
            "train",
            str(path),
            *flags,
        ],
        env=environment() | disabled,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def workers_of(launcher: subprocess.Popen[str]) -> list[int]:
    """The processes that a torchrun has started."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in listed.splitlines()]
    return [pid for pid, parent in pairs if parent == launcher.pid]


def wait_for(launcher: subprocess.Popen[str], recipe: Recipe, step: int, message: str = "") -> None:
    """Waits for a line of the metrics, and for an event before it where a message is given."""
    metrics, deadline = RunFolder(recipe.run.folder).metrics, time.monotonic() + 240
    while True:
        lines = read_metrics(metrics) if metrics.exists() else []
        said = any(message in str(line.get("message", "")) for line in lines)
        if said and max([int(str(line["step"])) for line in lines if line["kind"] == "train"], default=0) >= step:
            return
        if launcher.poll() is not None or time.monotonic() > deadline:
            os.killpg(launcher.pid, signal.SIGKILL)
            raise AssertionError(launcher.communicate()[0])
        time.sleep(0.01)


def last_weights(recipe: Recipe) -> dict[str, torch.Tensor]:
    return load_file(RunFolder(recipe.run.folder).checkpoint("last") / "model.safetensors")


def written(base: Path, training: TrainingRecipe, strategy: Strategy) -> tuple[Recipe, Recipe]:
    """A run to be killed, in `recipe.toml`, and the same run to be left alone, in `undisturbed.toml`."""
    found = []
    for name, file in (("killed", "recipe.toml"), ("whole", "undisturbed.toml")):
        recipe = tiny_recipe(base, training, name)
        found.append(replace(recipe, distributed=replace(recipe.distributed, strategy=strategy)))
        write_recipe(found[-1], base / file)
    return found[0], found[1]


def test_a_killed_worker_of_two_is_started_again_and_sigterm_saves_and_leaves(tmp_path: Path) -> None:
    recipe, whole = written(tmp_path, LONG, "fsdp2")
    launcher = started(tmp_path / "recipe.toml", 2)
    wait_for(launcher, recipe, 15)
    os.kill(workers_of(launcher)[-1], signal.SIGKILL)
    wait_for(launcher, recipe, 30, message="resuming from step")
    launcher.send_signal(signal.SIGTERM)
    output, _ = launcher.communicate(timeout=120)
    assert launcher.returncode != 0, output
    folder = RunFolder(recipe.run.folder)
    messages = [str(line["message"]) for line in read_metrics(folder.metrics) if line["kind"] == "event"]
    assert any("stopped by SIGTERM" in message for message in messages), output
    stopped = int(folder.checkpoint("last").name.removeprefix("step-"))
    assert 30 <= stopped < LONG.steps
    run_cases(2, tmp_path, "trained", "trained_undisturbed")  # the same number of processes goes on to the end
    assert folder.checkpoint("last").name == f"step-{LONG.steps}"
    expected, found = last_weights(whole), last_weights(recipe)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    steps = [line["step"] for line in read_metrics(folder.metrics) if line["kind"] == "train"]
    assert steps == list(range(1, LONG.steps + 1))


def test_a_killed_worker_of_four_is_started_again_and_the_run_ends_as_it_would_have(tmp_path: Path) -> None:
    recipe, whole = written(tmp_path, replace(LONG, steps=50), "ddp")
    launcher = started(tmp_path / "recipe.toml", 4)
    wait_for(launcher, recipe, 15)
    os.kill(workers_of(launcher)[1], signal.SIGKILL)
    output, _ = launcher.communicate(timeout=240)
    assert launcher.returncode == 0, output
    events = [
        str(line["message"]) for line in read_metrics(RunFolder(recipe.run.folder).metrics) if line["kind"] == "event"
    ]
    assert any("resuming from step" in message for message in events), output
    run_cases(4, tmp_path, "trained_undisturbed")
    expected, found = last_weights(whole), last_weights(recipe)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_an_existing_run_is_not_taken_over_by_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(tmp_path)
    tiny_trainer(recipe).run()
    folder = RunFolder(recipe.run.folder)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert not made_before(folder)
    folder = RunFolder(tmp_path / "own")
    with claimed(folder, resume=False):
        furnish_run(folder, recipe, tiny_trainer(recipe).task.tokenizer)
    assert made_before(RunFolder(tmp_path / "own"))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "b")
    assert not made_before(RunFolder(tmp_path / "own"))
