import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from equilibria.errors import UserError
from equilibria.runs import checkpoints as module
from equilibria.runs.checkpoints import Checkpoint, read_checkpoint, save_checkpoint, sound_checkpoint
from equilibria.runs.folder import RunFolder
from equilibria.runs.index import CheckpointIndex, read_index
from equilibria.runs.weights import fill, read_tensors


def content(value: float) -> Checkpoint:
    return Checkpoint({"m": torch.tensor([value])}, {"step": int(value), "best_step": None})


def save(folder: RunFolder, step: int, best: bool = False, content: Checkpoint | None = None, kept: int = 2) -> None:
    """A checkpoint whose weights are all the number of the step."""
    of = content or Checkpoint({"m": torch.tensor([float(step)])}, {"step": step, "best_step": None})
    save_checkpoint(folder, step, {"w": torch.full((2, 3), float(step))}, of, best, kept)


def saved(folder: RunFolder) -> set[str]:
    return {entry.name for entry in folder.checkpoints.iterdir()}


def weights(folder: RunFolder, name: str = "last") -> torch.Tensor:
    path = folder.checkpoint(name) / "model.safetensors"
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}  # without it other libraries refuse the file
    return load_file(path)["w"]


def flip(path: Path, place: int) -> None:
    """Inverts a byte of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 255
    path.write_bytes(content)


def test_reads_back_what_was_saved(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    tensors = {"a": torch.tensor(3.0), "b": torch.zeros(0, dtype=torch.float64), "c": torch.tensor([True, False])}
    save(folder, 4, content=replace(content(4), trainer=tensors))
    found = read_checkpoint(folder.checkpoint("last"))
    assert torch.equal(weights(folder), torch.full((2, 3), 4.0))
    assert found.trainer.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found.trainer[name], tensor)
        assert found.trainer[name].dtype == tensor.dtype
    assert found.scalars == content(4).scalars


def test_nothing_in_a_checkpoint_is_a_pickle(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    save(folder, 4, best=False)
    files = [path for path in folder.checkpoint("last").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    assert len(files) == 4


def test_keeps_the_best_and_so_many_of_the_last(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step, best in ((1, True), (2, True), (3, False), (4, False), (5, False)):
        save(folder, step, best, kept=2)
    assert saved(folder) == {"step-2", "step-4", "step-5", "index.json"}
    assert folder.index() == CheckpointIndex(last="step-5", best="step-2")
    assert folder.checkpoint("best").name == "step-2"
    save(folder, 6, best=False, kept=1)
    assert saved(folder) == {"step-2", "step-6", "index.json"}


def test_best_is_the_last_before_the_first_evaluation(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    save(folder, 1, best=False)
    assert folder.checkpoint("best").name == "step-1"


def test_a_step_that_the_index_names_is_not_written_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    save(folder, 1, best=False)
    save(folder, 1, best=True, content=content(2))
    assert folder.index() == CheckpointIndex("step-1", "step-1")
    assert torch.equal(weights(folder), torch.full((2, 3), 1.0))


def test_leftovers_of_a_killed_save_do_no_harm(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    save(folder, 1, best=True)
    for leftover in (".step-2.00000000.partial", ".step-9.00000000.partial"):
        (folder.checkpoints / leftover).mkdir()
        (folder.checkpoints / leftover / "model.safetensors").write_bytes(b"half")
    save(folder, 2, best=True)
    assert saved(folder) == {"step-1", "step-2", "index.json"}
    assert torch.equal(weights(folder), torch.full((2, 3), 2.0))


def test_what_the_run_has_not_written_stays(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    save(folder, 2, best=False)
    foreign = {"step-1", "step-3", "step-9", "step-2-good", "step-02", "damaged-step-1", "notes"}
    for name in foreign:
        shutil.copytree(folder.checkpoints / "step-2", folder.checkpoints / name)
    (folder.checkpoints / "step-note").write_text("a file")
    for step in (3, 4, 5, 6):  # one that is in the way of another gets another name
        save(folder, step, best=False)
    own = {"step-5", "step-6", "index.json"}
    assert saved(folder) == own | foreign - {"step-3"} | {"replaced-step-3", "step-note"}
    for name in (foreign - {"step-3"}) | {"replaced-step-3"}:
        assert torch.equal(load_file(folder.checkpoints / name / "model.safetensors")["w"], torch.full((2, 3), 2.0))


def test_a_checkpoint_later_than_the_index_says_is_gone_on_from(tmp_path: Path) -> None:
    """Killed after its folder had its name, and before the index had."""
    folder = RunFolder(tmp_path)
    save(folder, 1, best=True)
    before = folder.index_file.read_bytes()
    save(folder, 2, best=True, content=replace(content(2), scalars={"step": 2, "best_step": 2}))
    folder.index_file.write_bytes(before)
    path, messages = sound_checkpoint(folder)
    assert path.name == "step-2"
    assert ["later than index.json says" in message for message in messages] == [True]
    assert folder.index() == CheckpointIndex("step-2", "step-2")
    assert sound_checkpoint(folder) == (path, [])


@pytest.mark.parametrize("damage", [None, "", "{", "[]", '{"last": "step-1"}'])
def test_an_index_that_is_lost_or_damaged_is_rebuilt(tmp_path: Path, damage: str | None) -> None:
    folder = RunFolder(tmp_path)
    for step in (1, 2, 3):
        scalars = {"step": step, "best_step": 2 if step > 1 else 1}
        save(folder, step, step < 3, replace(content(step), scalars=scalars), kept=3)
    flip(folder.checkpoint("step-1") / "model.safetensors", -1)  # is not looked at
    if damage is None:
        folder.index_file.unlink()
    else:
        folder.index_file.write_text(damage)
    before = saved(folder)
    with pytest.warns(UserWarning, match=r"index\.json is (missing|damaged).*step-3 is the last checkpoint"):
        assert folder.index() == CheckpointIndex("step-3", "step-2")
    assert saved(folder) == before, "who reads a run does not write to it"
    path, messages = sound_checkpoint(folder)
    assert path.name == "step-3"
    assert ["rebuilt it from the existing checkpoints" in message for message in messages] == [True]
    assert read_index(folder.index_file) == CheckpointIndex("step-3", "step-2")
    save(folder, 4, best=False, kept=1)
    assert saved(folder) == {"step-1", "step-2", "step-3", "step-4", "index.json"}, "what is not known to be its own"


def test_a_lost_index_and_no_sound_checkpoint_is_no_run_without_checkpoints(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert not folder.saved
    assert folder.index() is None
    save(folder, 1)
    flip(folder.checkpoint("last") / "trainer.json", 5)
    folder.index_file.unlink()
    assert folder.saved
    with pytest.raises(UserError, match=r"no checkpoint in .* is what was saved: .*trainer\.json"):
        folder.index()
    with pytest.raises(UserError, match=r"can be resumed from: .*index\.json is missing.*trainer\.json"):
        sound_checkpoint(folder)
    (folder.checkpoints / "step-1").rename(folder.checkpoints / "damaged-step-1")
    assert folder.saved


@pytest.mark.parametrize(
    "failing",
    [
        "unnamed_folder",
        "_write_trainer",
        "save_file",
        "write_manifest",
        "flush_folder",
        "rename_durably",
        "write_index",
    ],
)
def test_a_save_that_fails_leaves_what_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    folder = RunFolder(tmp_path)
    save(folder, 1, best=True)

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, failing, no_space)
        with pytest.raises(UserError, match=r"No space left.*step-1 stays"):
            save(folder, 2, best=True)
    assert folder.index() == CheckpointIndex("step-1", "step-1")
    if failing == "write_index":  # all but the index is there
        assert sound_checkpoint(folder)[0].name == "step-2"
        assert torch.equal(weights(folder), torch.full((2, 3), 2.0))
        return
    assert sound_checkpoint(folder) == (folder.checkpoint("step-1"), [])
    save(folder, 2, best=True)
    assert saved(folder) == {"step-1", "step-2", "index.json"}


FILES = ["model.safetensors", "trainer/shard-00001-model-00001-of-00001.safetensors", "trainer.json", "manifest.json"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "missing"])
def test_what_is_damaged_is_named_and_the_one_before_it_taken(tmp_path: Path, file: str, damage: str) -> None:
    folder = RunFolder(tmp_path)
    for step in (1, 2, 3):
        best = step == 2
        scalars = {"step": step, "best_step": 2 if step > 1 else None}
        save(folder, step, best, replace(content(step), scalars=scalars), kept=3)
    path = folder.checkpoint("step-3") / file
    match damage:
        case "empty":
            os.truncate(path, 0)
        case "cut":
            os.truncate(path, path.stat().st_size - 2)  # of JSON, more than a line's end
        case "flipped":
            flip(path, path.stat().st_size - 3)
        case "missing":
            path.unlink()
    found, problems = sound_checkpoint(folder)
    assert found == folder.checkpoints / "step-2"
    assert len(problems) == 1
    assert file.rpartition("/")[2] in problems[0]
    assert folder.index() == CheckpointIndex("step-2", "step-2")
    assert saved(folder) == {"step-1", "step-2", "damaged-step-3", "index.json"}
    assert sound_checkpoint(folder) == (found, [])


def test_a_best_checkpoint_that_is_damaged_is_the_best_no_more(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    save(folder, 1, best=False)
    save(folder, 2, best=True)
    flip(folder.checkpoint("step-2") / "model.safetensors", -1)
    assert sound_checkpoint(folder)[0].name == "step-1"
    assert folder.index() == CheckpointIndex("step-1", None)


def test_no_sound_checkpoint_is_an_error_that_names_all(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in (1, 2):
        save(folder, step, best=False)
        flip(folder.checkpoint("last") / "trainer.json", 5)
    with pytest.raises(UserError, match=r"no checkpoint of .* can be resumed from: .*step-2.*step-1.*trainer\.json"):
        sound_checkpoint(folder)
    assert saved(folder) == {"step-1", "step-2", "index.json"}


def test_a_last_checkpoint_that_is_gone_is_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in (1, 2):
        save(folder, step, best=False)
    shutil.rmtree(folder.checkpoint("last"))
    path, problems = sound_checkpoint(folder)
    assert path.name == "step-1"
    assert "step-2 is missing" in problems[0]
    assert folder.index() == CheckpointIndex("step-1", None)


def test_a_run_that_has_lost_what_it_saved_saves_what_it_has(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    save(folder, 1, best=True)
    flip(folder.checkpoint("step-1") / "model.safetensors", -1)
    folder.index_file.unlink()
    save(folder, 2)
    assert folder.index() == CheckpointIndex("step-2")
    assert saved(folder) == {"step-1", "step-2", "index.json"}


def test_folders_that_are_set_aside_take_no_name_that_is_taken(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for value in (1.0, 2.0):
        save(folder, 1)
        save(folder, 2, content=content(value))
        flip(folder.checkpoint("step-2") / "trainer.json", 5)
        sound_checkpoint(folder)
    assert saved(folder) == {"step-1", "damaged-step-2", "damaged-step-2-2", "index.json"}


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


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_numbers_of_another_kind_are_no_weights(dtype: torch.dtype) -> None:
    target = {"a": torch.zeros(2)}
    with pytest.raises(UserError, match=rf"has a as {dtype}, the model as torch\.float32"):
        fill(target, {"a": torch.ones(2, dtype=dtype)}, Path("model.safetensors"))
    with pytest.raises(UserError, match=r"has a as torch\.float32, the model as"):
        fill({"a": torch.zeros(2, dtype=dtype)}, {"a": torch.ones(2)}, Path("model.safetensors"))
    assert torch.equal(target["a"], torch.zeros(2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_one_precision_becomes_another(dtype: torch.dtype) -> None:
    target = {"a": torch.zeros(2)}
    fill(target, {"a": torch.ones(2, dtype=dtype)}, Path("model.safetensors"))
    assert torch.equal(target["a"], torch.ones(2))


def test_a_file_that_is_replaced_while_it_is_opened_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def replaced(path: Path) -> None:
        raise RuntimeError(f"unable to open file <{path}> in read-only mode: No such file or directory (2)")

    monkeypatch.setattr("equilibria.runs.weights.load_file", replaced)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match="unable to open file"):
        read_tensors(tmp_path / "model.safetensors")
