"""What a run reads of its text or its task, and runs of tasks, baselines and depth schedules."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tiny
from equilibria.cli.app import main
from equilibria.configuration import Recipe, RunRecipe, write_recipe
from equilibria.data import CopyMemory, Corpus, EncodedSplit, EvaluationStream
from equilibria.depths import DepthSchedule, Equilibrium, GrowingLimits
from equilibria.errors import UserError
from equilibria.inference.evaluation import evaluate_model
from equilibria.inference.loading import load_run, load_task
from equilibria.models import LanguageModel, LanguageModelRecipe, ModelRecipe, Regularisation
from equilibria.nn import TokenEmbedding, UntiedEmbedding
from equilibria.optimization import Constant
from equilibria.paper.baselines import GRU, QRNN
from equilibria.runs.folder import RunFolder
from equilibria.runs.metrics import read_metrics
from equilibria.training import train

TASK = CopyMemory(blanks=6, symbols=2, held_out=20)
UNTIED: partial[TokenEmbedding] = partial(UntiedEmbedding)
BASELINE = GRU(embedding=UNTIED, d_model=6, hidden=8)


def task_recipe(base: Path, model: ModelRecipe, name: str = "task") -> Recipe:
    return Recipe(
        run=RunRecipe(name=name, directory=base / "runs"),
        data=TASK,
        model=model,
        training=replace(tiny.TRAINING, batch_size=4, evaluate_tokens=None),
    )


def trained(recipe: Recipe, resume: bool = False) -> Path:
    return train(recipe, resume=resume).folder


def last_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(RunFolder(folder).checkpoint("last") / "model.safetensors")


def test_a_text_is_read_by_the_recipe(tmp_path: Path) -> None:
    recipe = tiny.tiny_recipe(tmp_path)
    recipe = replace(recipe, training=replace(recipe.training, steps=2, accumulation=3))
    result = tiny.tiny_trainer(recipe).run()
    assert result.tokens_per_second == pytest.approx(2 * 2 * 3 * 16 / result.seconds)
    assert result.validation is not None
    assert result.validation.tokens == 200 - 1
    valid = load_task(load_run(result.folder)).split("valid")
    assert isinstance(valid, EncodedSplit)
    everything = evaluate_model(load_run(result.folder).model, valid, 2, 16)
    assert everything.tokens == EvaluationStream(valid.tokens, 2, 16).targets


def test_a_task_is_read_by_the_recipe(tmp_path: Path) -> None:
    recipe = task_recipe(tmp_path, BASELINE)
    recipe = replace(recipe, training=replace(recipe.training, steps=2, accumulation=3, evaluate_tokens=41))
    result = tiny.tiny_trainer(recipe).run()
    assert result.tokens_per_second == pytest.approx(2 * 4 * 3 * 10 / result.seconds)
    assert result.validation is not None
    assert result.validation.tokens == 2 * 4 * 10  # two batches of four sequences of ten


@pytest.mark.parametrize(
    "model",
    [
        BASELINE,
        LanguageModelRecipe(embedding=UNTIED, cell=partial(tiny.CELL, inner=16)),
    ],
    ids=["baseline", "equilibrium"],
)
def test_a_task_is_trained_evaluated_and_resumed(
    tmp_path: Path, model: ModelRecipe, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = trained(task_recipe(tmp_path, model))
    loaded = load_run(folder)
    assert isinstance(loaded.model, LanguageModel) == isinstance(model, LanguageModelRecipe)
    assert loaded.tokenizer.vocabulary_size == 10
    assert load_task(loaded) == TASK
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
    assert main(["generate", str(folder), "--prompt", "12 34", "--max-new-tokens", "5"]) == 2  # a task's answers
    # Rates that do not look at the last step, so that the halves of a run are those of the whole.
    whole = task_recipe(tmp_path, model, "whole")
    whole = replace(whole, training=replace(whole.training, schedule=Constant(warmup_steps=2)))
    halves = replace(whole, run=replace(whole.run, name="halves"))
    trained(whole)
    trained(replace(halves, training=replace(halves.training, steps=6)))
    trained(halves, resume=True)
    expected, found = last_weights(whole.run.folder), last_weights(halves.run.folder)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_another_task_cannot_be_resumed(tmp_path: Path) -> None:
    recipe = task_recipe(tmp_path, BASELINE)
    trained(recipe)
    with pytest.raises(UserError, match="not the one that"):
        trained(replace(recipe, data=replace(TASK, blanks=7)), resume=True)


def test_a_baseline_is_trained_on_text(tmp_path: Path) -> None:
    regularisation = Regularisation(output_dropout=0.1, slowness_penalty=1.0)
    model = QRNN(d_model=8, hidden=12, layers=2, regularisation=regularisation, memory_length=1)
    recipe = replace(tiny.tiny_recipe(tmp_path), model=model)
    folder = trained(recipe)
    loaded = load_run(folder)
    assert isinstance(load_task(loaded), Corpus)
    assert main(["eval", str(folder)]) == 0
    assert main(["eval", str(folder), "--tolerance", "0.1"]) == 2
    assert main(["generate", str(folder), "--max-new-tokens", "5"]) == 0
    assert main(["report", str(folder)]) == 0
    assert "· QRNN ·" in (folder / "report.html").read_text(encoding="utf-8")


def test_the_schedule_of_the_depth_is_that_of_the_recipe(tmp_path: Path) -> None:
    schedule = DepthSchedule(warmup_steps=6, warmup_applications=1, limits=GrowingLimits(1, 8))
    recipe = tiny.with_model(tiny.tiny_recipe(tmp_path), depth=Equilibrium(schedule=schedule))
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
    assert isinstance(model.depth, Equilibrium)
    assert model.depth.steady() == Equilibrium()


def test_the_best_checkpoint_is_not_one_of_the_shallow_start(tmp_path: Path) -> None:
    training = replace(tiny.TRAINING, evaluate_every=2)
    recipe = tiny.tiny_task_recipe(tmp_path, training)
    assert isinstance(recipe.model, LanguageModelRecipe)
    assert isinstance(recipe.model.depth, Equilibrium)
    warmup = recipe.model.depth.warmup(training.steps)
    assert warmup
    trainer = tiny.tiny_trainer(recipe)
    trainer._best, trainer._best_step = 0.0, warmup  # as if the shallow network had been better than anything later
    result = trainer.run()
    assert result.best_loss is not None
    assert result.best_loss > 0
    assert trainer._best_step > warmup
