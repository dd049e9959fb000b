"""Checkpoints: written whole or not at all, and never at the cost of an earlier one."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from equilibria.errors import UserError
from equilibria.inference.run_folder import CheckpointIndex, RunFolder
from equilibria.inference.weights import read_tensors

MODEL_FILE = "model.safetensors"
TRAINER_FILE = "trainer.safetensors"
SCALARS_FILE = "trainer.json"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        model: weights by name.
        trainer: everything else that is a tensor: optimizer, segment memory, random states, running sums.
        scalars: everything else, as the json module writes it.
    """

    model: Mapping[str, Tensor]
    trainer: Mapping[str, Tensor]
    scalars: Mapping[str, object]


def save_checkpoint(folder: RunFolder, step: int, checkpoint: Checkpoint, best: bool) -> None:
    """Saves a checkpoint as the last one (and the best one), then removes those that are neither.

    The files are written under a temporary name, flushed to the disk and renamed; only then does the index,
    replaced in one go, point to them. Whenever the process is killed, the index names a complete checkpoint.
    One that the index names already is not written again.

    Args:
        folder: the run.
        step: optimizer steps finished; names the checkpoint.
        checkpoint: what to save.
        best: whether this is the best one so far.

    Raises:
        UserError: the disk is full or cannot be written; what was saved earlier stays.
    """
    name = f"step-{step}"
    previous = folder.index()
    index = CheckpointIndex(name, name if best else previous.best if previous else None)
    partial = folder.checkpoints / f".{name}.partial"
    try:
        folder.checkpoints.mkdir(exist_ok=True)
        if previous and name in (previous.last, previous.best):
            write_index(folder, index)
            return
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        _write_tensors(partial / MODEL_FILE, checkpoint.model)
        _write_tensors(partial / TRAINER_FILE, checkpoint.trainer)
        _write_text(partial / SCALARS_FILE, json.dumps(checkpoint.scalars, indent=1))
        _flush(partial)
        target = folder.checkpoints / name
        if target.exists():  # left by a run that was killed before its index pointed to it
            shutil.rmtree(target)
        partial.rename(target)
        _flush(folder.checkpoints)
        write_index(folder, index)
    except (OSError, SafetensorError) as problem:
        shutil.rmtree(partial, ignore_errors=True)
        kept = f"{previous.last} stays" if previous else "nothing had been saved before"
        raise UserError(
            f"the checkpoint of step {step} cannot be saved in {folder.checkpoints} ({problem}); {kept}; "
            f"free some space and resume"
        ) from problem
    _prune(folder)


def write_index(folder: RunFolder, index: CheckpointIndex) -> None:
    """Replaces the index file in one go."""
    replacement = folder.index_file.with_name(".index.json.partial")
    _write_text(replacement, json.dumps(asdict(index)) + "\n")
    os.replace(replacement, folder.index_file)
    _flush(folder.checkpoints)


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint's folder.

    Raises:
        UserError: a file is missing, truncated or damaged.
    """
    scalars_path = path / SCALARS_FILE
    try:
        scalars = json.loads(scalars_path.read_text(encoding="utf-8"))
        if not isinstance(scalars, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as problem:
        raise UserError(
            f"{scalars_path} is missing or damaged ({problem}); restore it, or name another checkpoint as "
            f'"last" in {path.parent / "index.json"}'
        ) from problem
    return Checkpoint(read_tensors(path / MODEL_FILE), read_tensors(path / TRAINER_FILE), scalars)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)
    _flush(path)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    _flush(path)


def _flush(path: Path) -> None:
    """Waits until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _prune(folder: RunFolder) -> None:
    """Removes checkpoints the index does not name, and what unfinished saves left."""
    index = folder.index()
    kept = {index.last, index.best} if index else set()
    for entry in folder.checkpoints.iterdir():
        if entry.is_dir() and entry.name not in kept and entry.name.lstrip(".").startswith("step-"):
            shutil.rmtree(entry, ignore_errors=True)
