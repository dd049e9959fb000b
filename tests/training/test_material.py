"""What a model is trained and validated on, and runs of tasks, baselines and depth schedules."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

import tiny
from equilibria.cli.app import main
from equilibria.cli.train import run_training
from equilibria.configuration import (
    BaselineRecipe,
    CellRecipe,
    DataRecipe,
    DepthRecipe,
    EmbeddingRecipe,
    ModelRecipe,
    Recipe,
    RunRecipe,
    ScheduleRecipe,
    build_corpus,
    write_recipe,
)
from equilibria.data import Corpus, EvaluationStream
from equilibria.data.synthetic import CopyMemory
from equilibria.depths import Equilibrium
from equilibria.errors import UserError
from equilibria.inference.loading import load_data, load_run
from equilibria.inference.run_folder import RunFolder
from equilibria.models import LanguageModel
from equilibria.training.checkpoint import read_checkpoint
from equilibria.training.material import material
from equilibria.training.metrics import read_metrics

TASK = CopyMemory(blanks=6, symbols=2, held_out=20)
UNTIED = EmbeddingRecipe(kind="untied")
GRU = BaselineRecipe(kind="gru", d_model=6, hidden=8)


def task_recipe(base: Path, model: ModelRecipe, name: str = "task") -> Recipe:
    return Recipe(
        run=RunRecipe(name=name, directory=base / "runs"),
        data=DataRecipe(source="copy_memory", blanks=6, symbols=2, held_out=20),
        model=model,
        training=replace(tiny.TRAINING, batch_size=4, evaluate_tokens=None),
    )


def trained(recipe: Recipe, resume: bool = False) -> Path:
    return run_training(recipe, resume, Console(quiet=True)).folder


def last_weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(read_checkpoint(RunFolder(folder).checkpoint("last")).model)


def test_a_text_is_read_by_the_recipe(tmp_path: Path) -> None:
    recipe = tiny.tiny_recipe(tmp_path)
    corpus = build_corpus(recipe)
    training = replace(recipe.training, accumulation=3)
    text = material(corpus, training)
    segment = text.batches(256).at(0)
    assert segment.inputs.shape == (2 * 3, text.segment_length) == (6, 16)
    trainer = tiny.tiny_trainer(recipe)
    assert text.validate(trainer.model).tokens == 200 - 1
    everything = material(corpus, replace(training, evaluate_tokens=None)).validate(trainer.model)
    assert everything.tokens == EvaluationStream(corpus.split("valid").tokens, 2, 16).targets


def test_a_task_is_read_by_the_recipe(tmp_path: Path) -> None:
    model = ModelRecipe(embedding=UNTIED, baseline=GRU)
    training = replace(task_recipe(tmp_path, model).training, accumulation=3)
    task = material(TASK, training)
    assert task.batches(10).at(0).inputs.shape == (4 * 3, task.segment_length) == (12, 10)
    with pytest.raises(UserError, match="10 classes and the model 9"):
        task.batches(9)
    loaded = load_run(trained(task_recipe(tmp_path, model))).model
    assert task.validate(loaded).tokens == 20 * 10
    some = material(TASK, replace(training, evaluate_tokens=41))
    assert some.validate(loaded).tokens == 2 * 4 * 10  # two batches of four sequences of ten
    assert material(replace(TASK, seed=1), training).fingerprint != task.fingerprint


@pytest.mark.parametrize(
    "model",
    [
        ModelRecipe(embedding=UNTIED, baseline=GRU),
        ModelRecipe(embedding=UNTIED, cell=CellRecipe(d_model=16, heads=2, inner=16, dropout=0.1)),
    ],
    ids=["baseline", "equilibrium"],
)
def test_a_task_is_trained_evaluated_and_resumed(
    tmp_path: Path, model: ModelRecipe, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = trained(task_recipe(tmp_path, model))
    loaded = load_run(folder)
    assert isinstance(loaded.model, LanguageModel) == (model.baseline.kind is None)
    assert loaded.tokenizer.vocabulary_size == 10
    assert load_data(loaded) == TASK
    capsys.readouterr()
    assert main(["eval", str(folder), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["tokens"] == 20 * 10
    assert figures["chance_loss"] == pytest.approx(TASK.chance)
    losses = [float(str(line["loss"])) for line in read_metrics(folder / "metrics.jsonl") if line["kind"] == "valid"]
    assert figures["loss"] == pytest.approx(min(losses))
    assert main(["eval", str(folder)]) == 0
    assert "chance loss" in capsys.readouterr().out
    assert main(["eval", str(folder), "--split", "test"]) == 2
    assert main(["report", str(folder)]) == 0
    assert main(["generate", str(folder), "--prompt", "12 34", "--max-new-tokens", "5"]) == 0

    # Rates that do not look at the last step, so that the halves of a run are those of the whole.
    whole = task_recipe(tmp_path, model, "whole")
    whole = replace(whole, training=replace(whole.training, schedule="constant"))
    halves = replace(whole, run=replace(whole.run, name="halves"))
    trained(whole)
    trained(replace(halves, training=replace(halves.training, steps=6)))
    trained(halves, resume=True)
    expected, found = last_weights(whole.run.folder), last_weights(halves.run.folder)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_another_task_cannot_be_resumed(tmp_path: Path) -> None:
    recipe = task_recipe(tmp_path, ModelRecipe(embedding=UNTIED, baseline=GRU))
    trained(recipe)
    with pytest.raises(UserError, match="not the one that"):
        trained(replace(recipe, data=replace(recipe.data, blanks=7)), resume=True)


def test_a_baseline_is_trained_on_text(tmp_path: Path) -> None:
    baseline = BaselineRecipe(kind="qrnn", d_model=8, hidden=12, layers=2, output_dropout=0.1, slowness_penalty=1.0)
    recipe = replace(tiny.tiny_recipe(tmp_path), model=ModelRecipe(baseline=baseline, memory_length=1))
    folder = trained(recipe)
    loaded = load_run(folder)
    assert isinstance(load_data(loaded), Corpus)
    assert main(["eval", str(folder)]) == 0
    assert main(["eval", str(folder), "--tolerance", "0.1"]) == 2
    assert main(["generate", str(folder), "--max-new-tokens", "5"]) == 0
    assert main(["report", str(folder)]) == 0
    assert "qrnn baseline" in (folder / "report.html").read_text(encoding="utf-8")


def test_the_schedule_of_the_depth_is_that_of_the_recipe(tmp_path: Path) -> None:
    schedule = ScheduleRecipe(
        warmup_steps=6, warmup_applications=1, limits="growing", first_evaluations=1, last_evaluations=8
    )
    recipe = tiny.tiny_recipe(tmp_path)
    recipe = replace(recipe, model=replace(recipe.model, depth=DepthRecipe(schedule=schedule)))
    file = tmp_path / "recipe.toml"
    write_recipe(recipe, file)
    assert main(["train", str(file)]) == 0
    lines = [line for line in read_metrics(recipe.run.folder / "metrics.jsonl") if line["kind"] == "train"]
    # Logged every three steps: nothing is solved before the seventh, and then more and more.
    solved = [line["evaluations"] for line in lines]
    assert solved[:2] == [None, None]
    assert 0 < float(str(solved[2])) < float(str(solved[3]))
    model = load_run(recipe.run.folder).model
    assert isinstance(model, LanguageModel)
    assert model.depth == Equilibrium()
