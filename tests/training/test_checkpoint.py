import json
import os
from pathlib import Path

import pytest
import torch

from equilibria.errors import UserError
from equilibria.inference.run_folder import CheckpointIndex, RunFolder
from equilibria.inference.weights import fill
from equilibria.training import checkpoint as module
from equilibria.training.checkpoint import Checkpoint, read_checkpoint, save_checkpoint


def content(value: float) -> Checkpoint:
    return Checkpoint({"w": torch.full((2, 3), value)}, {"m": torch.tensor([value])}, {"step": int(value)})


def saved(folder: RunFolder) -> set[str]:
    return {entry.name for entry in folder.checkpoints.iterdir()}


def test_reads_back_what_was_saved(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    save_checkpoint(folder, 4, content(4), best=False)
    found = read_checkpoint(folder.checkpoint("last"))
    assert torch.equal(found.model["w"], torch.full((2, 3), 4.0))
    assert torch.equal(found.trainer["m"], torch.tensor([4.0]))
    assert found.scalars == {"step": 4}


def test_keeps_best_and_last_alone(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step, best in ((1, True), (2, True), (3, False), (4, False)):
        save_checkpoint(folder, step, content(step), best)
    assert saved(folder) == {"step-2", "step-4", "index.json"}
    assert folder.index() == CheckpointIndex(last="step-4", best="step-2")
    assert folder.checkpoint("best").name == "step-2"


def test_best_is_the_last_before_the_first_evaluation(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    save_checkpoint(folder, 1, content(1), best=False)
    assert folder.checkpoint("best").name == "step-1"


def test_a_step_that_the_index_names_is_not_written_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    save_checkpoint(folder, 1, content(1), best=False)
    save_checkpoint(folder, 1, content(2), best=True)
    assert folder.index() == CheckpointIndex("step-1", "step-1")
    assert read_checkpoint(folder.checkpoint("last")).scalars == {"step": 1}


def test_leftovers_of_a_killed_save_do_no_harm(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    save_checkpoint(folder, 1, content(1), best=True)
    for leftover in ("step-2", ".step-2.partial", ".step-9.partial"):
        (folder.checkpoints / leftover).mkdir()
        (folder.checkpoints / leftover / "model.safetensors").write_bytes(b"half")
    save_checkpoint(folder, 2, content(2), best=True)
    assert saved(folder) == {"step-2", "index.json"}
    assert torch.equal(read_checkpoint(folder.checkpoint("last")).model["w"], torch.full((2, 3), 2.0))


@pytest.mark.parametrize("failing", ["_write_tensors", "_write_text", "write_index"])
def test_a_save_that_fails_leaves_what_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    folder = RunFolder(tmp_path)
    save_checkpoint(folder, 1, content(1), best=True)

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, failing, no_space)
        with pytest.raises(UserError, match=r"No space left.*step-1 stays"):
            save_checkpoint(folder, 2, content(2), best=True)
    assert folder.index() == CheckpointIndex("step-1", "step-1")
    assert read_checkpoint(folder.checkpoint("last")).scalars == {"step": 1}
    save_checkpoint(folder, 2, content(2), best=True)
    assert saved(folder) == {"step-2", "index.json"}


@pytest.mark.parametrize("file", ["model.safetensors", "trainer.safetensors", "trainer.json"])
@pytest.mark.parametrize("size", [0, 5, -1])
def test_a_truncated_file_is_named(tmp_path: Path, file: str, size: int) -> None:
    folder = RunFolder(tmp_path)
    save_checkpoint(folder, 1, content(1), best=True)
    path = folder.checkpoint("last") / file
    os.truncate(path, size if size >= 0 else path.stat().st_size - 1)
    with pytest.raises(UserError, match=file):
        read_checkpoint(folder.checkpoint("last"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    save_checkpoint(folder, 1, content(1), best=True)
    (folder.checkpoint("last") / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        read_checkpoint(folder.checkpoint("last"))


def test_a_damaged_index_is_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    save_checkpoint(folder, 1, content(1), best=True)
    for text in ("", "{", "[]", json.dumps({"last": 3})):
        folder.index_file.write_text(text)
        with pytest.raises(UserError, match=r"index\.json is damaged"):
            folder.index()


def test_another_shape_is_named_and_nothing_is_written() -> None:
    target = {"a": torch.zeros(2), "b": torch.zeros(3, 4)}
    tensors = {"a": torch.ones(2), "b": torch.ones(3, 5)}
    with pytest.raises(UserError, match=r"b is \(3, 5\) in the file, \(3, 4\) in the model"):
        fill(target, tensors, Path("model.safetensors"))
    assert torch.equal(target["a"], torch.zeros(2))
    with pytest.raises(UserError, match="no tensor b"):
        fill(target, {"a": torch.ones(2)}, Path("model.safetensors"))
    with pytest.raises(UserError, match="tensor c that this model lacks"):
        fill(target, {**target, "c": torch.ones(2)}, Path("model.safetensors"))
