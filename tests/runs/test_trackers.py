"""Trackers get every record; TensorBoard's files hold the figures; no tracker can end a run."""

import io
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from equilibria.configuration import Recipe
from equilibria.configuration.building import build_model
from equilibria.data.prepared import opened
from equilibria.distributed import World
from equilibria.errors import UserError
from equilibria.runs.folder import RunFolder
from equilibria.runs.metrics import read_metrics
from equilibria.runs.trackers import Record, numbers
from equilibria.training import Trainer
from equilibria.training.display import display
from tiny import TRAINING, tiny_recipe, tiny_trainer


class Notebook:
    """Keeps what it is given; fails at a record of a step."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.records: list[Record] = []
        self.closed = 0
        self._fails_at = fails_at

    def log(self, record: Record) -> None:
        if record["step"] == self._fails_at:
            raise ConnectionError("no such host")
        self.records.append(record)

    def close(self) -> None:
        self.closed += 1


def trainer(recipe: Recipe, *notebooks: Notebook) -> Trainer:
    task = opened(recipe.data)
    model = build_model(recipe, task.tokenizer.vocabulary_size)
    return Trainer(model, recipe, task, recipe.run.folder, Console(quiet=True), trackers=notebooks)


def lines(recipe: Recipe) -> list[dict[str, Any]]:
    return read_metrics(RunFolder(recipe.run.folder).metrics)


def test_a_tracker_gets_every_record_and_is_closed(tmp_path: Path) -> None:
    recipe, notebook = tiny_recipe(tmp_path), Notebook()
    trainer(recipe, notebook).run()
    assert notebook.records == lines(recipe)
    assert {record["kind"] for record in notebook.records} == {"train", "valid"}
    assert notebook.closed == 1


def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    failing, other = Notebook(fails_at=6), Notebook()
    with pytest.warns(UserWarning, match=r"tracker Notebook failed \(ConnectionError: no such host\); it is dropped"):
        result = trainer(recipe, failing, other).run()
    assert result.step == TRAINING.steps
    assert [record["step"] for record in failing.records] == [3]
    assert other.records == lines(recipe)
    assert (failing.closed, other.closed) == (1, 1)


def test_numbers_are_what_can_be_drawn() -> None:
    record = {"kind": "valid", "step": 3, "loss": 2.5, "accuracy": None, "message": "x", "best": True, "time": 1.0}
    assert numbers(record) == {"loss": 2.5}


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a folder."""
    shown = EventAccumulator(str(folder))
    shown.Reload()
    tags = shown.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in shown.Scalars(tag)] for tag in tags}


def expected(recipe: Recipe) -> dict[str, list[tuple[int, object]]]:
    found: dict[str, list[tuple[int, object]]] = {}
    for line in lines(recipe):
        for name, value in numbers(line).items():
            found.setdefault(f"{line['kind']}/{name}", []).append((line["step"], pytest.approx(value, rel=1e-6)))
    return found


def test_tensorboard_shows_the_metrics_of_a_run_that_was_killed_and_resumed(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, replace(TRAINING, tensorboard=True))
    killed = tiny_trainer(recipe)
    take = killed.loop.step

    def stopping() -> Tensor:
        if killed.loop.done == 7:  # after the figures of step 6, which come again after the checkpoint of step 4
            raise RuntimeError("killed")
        return take()

    killed.loop.step = stopping
    with pytest.raises(RuntimeError, match="killed"):
        killed.run()
    tiny_trainer(recipe).run(resume=True)
    found = scalars(RunFolder(recipe.run.folder).tensorboard)
    assert found == expected(recipe)
    assert [step for step, _ in found["train/loss"]] == [3, 6, 9, 12]


def test_without_the_package_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    recipe = tiny_recipe(tmp_path, replace(TRAINING, tensorboard=True))
    with pytest.raises(UserError, match=r'pip install "equilibria\[tensorboard\]"'):
        tiny_trainer(recipe)
    assert not recipe.run.folder.exists()


def test_another_process_shows_and_tracks_nothing(tmp_path: Path) -> None:
    """The second of two: it hands its records to nobody, and its console is silent."""
    recipe, notebook, stream = tiny_recipe(tmp_path, replace(TRAINING, tensorboard=True)), Notebook(), io.StringIO()
    task = opened(recipe.data)
    model = build_model(recipe, task.tokenizer.vocabulary_size)
    second = Trainer(model, recipe, task, recipe.run.folder, Console(file=stream), World(rank=1), [notebook])
    second._metrics = second._writer(0)
    second._metrics.write("train", 1, {"loss": 1.0})
    second._event("here", display(second._console, "run", 10, 0))
    assert notebook.records == []
    assert stream.getvalue() == ""
    assert not recipe.run.folder.exists()
