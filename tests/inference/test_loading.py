import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from equilibria.configuration import table_of, write_recipe
from equilibria.errors import UserError
from equilibria.inference.loading import load, load_run
from equilibria.runs.folder import RunFolder
from tiny import TRAINING, tiny_recipe, tiny_task_recipe, tiny_trainer, wider


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = tiny_recipe(tmp_path_factory.mktemp("run"))
    tiny_trainer(recipe).run()
    return recipe.run.folder


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> RunFolder:
    shutil.copytree(run, tmp_path / "copy")
    return RunFolder(tmp_path / "copy")


def test_a_trained_model_comes_back(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    trainer = tiny_trainer(recipe)
    trainer.run()
    found = load_run(recipe.run.folder, "last")
    assert found.step == 12
    assert table_of(found.recipe) == table_of(recipe)
    assert not found.model.training
    tokens = torch.tensor([found.tokenizer.encode("the moon and the mat")])
    with torch.no_grad():
        # What is read from a file begins anywhere in memory, and products of it may be rounded otherwise.
        torch.testing.assert_close(found.model(tokens).logits, trainer.model.eval()(tokens).logits)


def test_load_takes_the_best(run: Path) -> None:
    best, model = load_run(run).model.state_dict(), load(str(run)).state_dict()
    assert all(torch.equal(best[name], model[name]) for name in best)
    assert load_run(run).checkpoint == RunFolder(run).checkpoint("best")


def test_weights_with_their_config_beside_them(run: Path, tmp_path: Path) -> None:
    folder = RunFolder(run)
    for file in (folder.config, folder.tokenizer, folder.checkpoint("last") / "model.safetensors"):
        shutil.copy(file, tmp_path)
    found = load_run(tmp_path / "model.safetensors")
    assert found.step is None
    expected = load_run(run, "last").model.state_dict()
    assert all(torch.equal(expected[name], tensor) for name, tensor in found.model.state_dict().items())


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named(run: Path, tmp_path: Path, number: float) -> None:
    folder = RunFolder(run)
    for file in (folder.config, folder.tokenizer):
        shutil.copy(file, tmp_path)
    tensors = load_file(folder.checkpoint("last") / "model.safetensors")
    name = sorted(tensors)[0]
    tensors[name].view(-1)[-2:] = number
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(UserError, match=rf"bad\.safetensors has 2 of \d+ numbers in {name} that are not finite"):
        load_run(tmp_path / "bad.safetensors")


def test_what_is_not_there_is_named(copy: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run folder .*elsewhere"):
        load_run(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"no checkpoint step-5 .*present: .*step-12"):
        load_run(copy.path, "step-5")
    copy.tokenizer.unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json is missing; .*`equilibria train \S*config\.toml --resume`"):
        load_run(copy.path)
    shutil.rmtree(copy.checkpoints)
    with pytest.raises(UserError, match="holds no checkpoint yet"):
        load_run(copy.path)


def test_a_checkpoint_of_another_shape_is_named(copy: RunFolder) -> None:
    write_recipe(wider(load_run(copy.path).recipe), copy.config)
    with pytest.raises(UserError, match=r"of another shape: \S+ is \(.*\) in the file, \(.*\) in the model"):
        load_run(copy.path)


def test_a_truncated_checkpoint_is_named(copy: RunFolder) -> None:
    path = copy.checkpoint("best") / "model.safetensors"
    os.truncate(path, path.stat().st_size - 7)
    with pytest.raises(UserError, match=r"model\.safetensors has \d+ bytes .* it was cut short"):
        load_run(copy.path)


def test_a_task_is_seen_whole(tmp_path: Path) -> None:
    recipe = tiny_task_recipe(tmp_path, replace(TRAINING, segment_length=4, steps=1))
    tiny_trainer(recipe).run()
    assert load_run(recipe.run.folder).window == 5 + 2 * 3


def test_of_a_text_a_segment_and_its_memory_are_seen(run: Path) -> None:
    assert load_run(run).window == 16 + 8
