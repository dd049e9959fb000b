"""Resuming where something but the checkpoints is lost or was changed, and reading beside a training that saves."""

import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from equilibria.cli.app import main
from equilibria.configuration import Recipe, read_recipe, write_recipe
from equilibria.errors import UserError
from equilibria.inference import loading
from equilibria.inference.loading import load_run
from equilibria.runs.folder import RunFolder
from plain_published import Published, random_weights
from processes import environment
from tiny import TRAINING, tiny_recipe, tiny_trainer

LOADS = 24


def stopped(base: Path, name: str = "tiny") -> Recipe:
    """A run of 8 steps, its recipe of 12."""
    recipe = tiny_recipe(base, TRAINING, name)
    tiny_trainer(replace(recipe, training=replace(TRAINING, steps=8))).run()
    return recipe


def resumed(recipe: Recipe) -> RunFolder:
    tiny_trainer(recipe).run(resume=True)
    return RunFolder(recipe.run.folder)


def events(folder: RunFolder) -> str:
    return "".join(line for line in folder.metrics.read_text().splitlines() if '"event"' in line)


def weights(folder: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(folder.checkpoint("last") / "model.safetensors")


@pytest.mark.parametrize("damage", [None, "", '{"last": "step-4"}'])
def test_without_its_index_a_run_goes_on_from_its_last_checkpoint(tmp_path: Path, damage: str | None) -> None:
    recipe = tiny_recipe(tmp_path)
    tiny_trainer(recipe).run()
    folder = RunFolder(recipe.run.folder)
    wanted = weights(folder)
    shutil.rmtree(folder.checkpoint("last"))
    before = {path.name for path in folder.checkpoints.glob("step-*")}
    if damage is None:
        folder.index_file.unlink()
    else:
        folder.index_file.write_text(damage)
    resumed(recipe)
    assert "rebuilt it from the existing checkpoints" in events(folder)
    assert "resuming from step 8" in events(folder)
    assert {path.name for path in folder.checkpoints.glob("step-*")} == before | {"step-12"}
    found = weights(folder)
    assert all(torch.equal(tensor, found[name]) for name, tensor in wanted.items())


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_from_step_0(tmp_path: Path) -> None:
    recipe = stopped(tmp_path)
    folder = RunFolder(recipe.run.folder)
    folder.index_file.unlink()
    for path in folder.checkpoints.glob("step-*"):
        (path / "trainer.json").unlink()
    before = sorted(folder.checkpoints.rglob("*"))
    with pytest.raises(UserError, match=r"no checkpoint of .* can be resumed from: .*index\.json is missing"):
        resumed(recipe)
    assert sorted(folder.checkpoints.rglob("*")) == before


@pytest.mark.parametrize("file", ["tokenizer.json", "manifest.json"])
def test_the_tokenizer_is_written_anew(tmp_path: Path, file: str) -> None:
    recipe = stopped(tmp_path)
    folder = RunFolder(recipe.run.folder)
    wanted = folder.tokenizer.read_bytes()
    (folder.path / file).write_text("")
    with pytest.raises(UserError, match=rf"{file} (is damaged|has 0 bytes).*--resume` *$"):
        load_run(folder.path)
    resumed(recipe)
    assert "wrote the tokenizer and its manifest again" in events(folder)
    assert folder.tokenizer.read_bytes() == wanted
    assert load_run(folder.path).step is not None


def edit(path: Path, old: str, new: str, accepted: bool) -> None:
    """As with an editor; accepted where the first line went too."""
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text((text.partition("\n")[2] if accepted else text).replace(old, new), encoding="utf-8")


def test_an_edited_recipe_is_taken_once_its_first_line_is_deleted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = stopped(tmp_path)
    config = RunFolder(recipe.run.folder).config
    assert config.read_text().splitlines()[0].endswith("delete this line if you change them")
    edit(config, "steps = 8", "steps = 12", accepted=False)
    for command in (["train", str(config), "--resume"], ["eval", str(config.parent)]):
        assert main(command) == 2
        assert "it was edited, or is damaged; restore it, or delete its first line" in capsys.readouterr().err
    config.write_text(config.read_text().partition("\n")[2])
    assert main(["train", str(config), "--resume"]) == 0
    assert RunFolder(recipe.run.folder).best_step() == 12
    edit(config, "steps = 12", "steps = 13", accepted=False)  # what a resumed run records is sealed again
    with pytest.raises(UserError, match="it was edited"):
        read_recipe(config)


def test_an_edit_cannot_make_a_run_that_of_another_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = stopped(tmp_path)
    config = RunFolder(recipe.run.folder).config
    edit(config, "dropout = 0.1", "dropout = 0.2", accepted=True)
    assert main(["train", str(config), "--resume", "--training.steps", "12"]) == 2
    assert "has model.cell.dropout = 0.1, the recipe 0.2" in capsys.readouterr().err


def test_an_import_says_how_it_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(random_weights(Published("torchdeq-lm", vocabulary_size=12, cutoffs=(5, 9))), tmp_path / "weights.pth")
    text = tmp_path / "text"
    text.mkdir()
    for split in ("train", "valid"):
        lines = (" ".join(str((7 * i + j) % 12) for j in range(40)) for i in range(200))
        (text / f"{split}.txt").write_text("\n".join(lines) + "\n")
    run = tmp_path / "run"
    imported = ["import", "torchdeq-lm", str(tmp_path / "weights.pth"), "--text", str(text), "--out", str(run)]
    assert main(imported) == 0
    train = ["train", str(run / "config.toml"), "--data.cache", str(tmp_path / "cache"), "--training.steps", "1"]
    way_out = f"start from its weights: `equilibria train {run / 'config.toml'} --run.name NAME"
    assert main(train) == 2
    assert f"holds an import; {way_out} --training.initial_weights {run}`" in capsys.readouterr().err
    assert main([*train, "--resume"]) == 2
    assert f"was imported and never trained; {way_out} --training.initial_weights {run}`" in capsys.readouterr().err
    assert (
        main(
            [*train, "--training.segment_length", "8", "--run.name", "trained", "--training.initial_weights", str(run)]
        )
        == 0
    )
    assert load_run(tmp_path / "trained").step == 1


def test_weights_to_start_from_are_checked(tmp_path: Path) -> None:
    recipe = stopped(tmp_path)
    path = RunFolder(recipe.run.folder).checkpoint("best") / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    write_recipe(tiny_recipe(tmp_path, name="other"), tmp_path / "other.toml")
    assert main(["train", str(tmp_path / "other.toml"), "--training.initial_weights", str(recipe.run.folder)]) == 2
    assert not (tmp_path / "runs" / "other").exists()


def test_a_checkpoint_that_is_removed_while_it_is_read_is_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(tmp_path, replace(TRAINING, checkpoints_kept=1, evaluate_every=100))
    tiny_trainer(replace(recipe, training=replace(recipe.training, steps=4, evaluate_every=100))).run()
    check = loading.check_manifest

    def overtaken(folder: Path, only: Sequence[str] | None = None) -> None:
        if folder.name == "step-4":
            monkeypatch.setattr(loading, "check_manifest", check)
            resumed(recipe)
            assert not folder.exists()
        check(folder, only)

    monkeypatch.setattr(loading, "check_manifest", overtaken)
    assert load_run(recipe.run.folder, "last").step == 12


def test_a_run_can_be_read_while_it_saves_every_step(tmp_path: Path) -> None:
    training = replace(TRAINING, steps=100_000, checkpoint_every=1, checkpoints_kept=1, evaluate_every=100_000)
    recipe = tiny_recipe(tmp_path, training)
    write_recipe(recipe, tmp_path / "recipe.toml")
    command = [sys.executable, "-m", "equilibria", "train", str(tmp_path / "recipe.toml")]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    folder = RunFolder(recipe.run.folder)
    try:
        while not folder.index_file.exists():
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.01)
        steps = [load_run(folder.path, "last").step for _ in range(LOADS)]
    finally:
        process.kill()
        process.communicate()
    assert None not in steps
    assert len(set(steps)) > 1, "nothing was saved meanwhile"
