"""Checkpoints: written whole or not at all, by all processes together, and never at the cost of an earlier one.

    step-N/model.safetensors    the weights to evaluate, whole: what everything but training reads
    step-N/trainer/             what training goes on from, a file per process
    step-N/trainer.json         the same, as far as it is no tensor
    step-N/manifest.json        sizes and digests of all of these

`trainer/` is a checkpoint of PyTorch's DCP, which cuts tensors anew for any number of processes. Its own file format
keeps a pickle beside the tensors, `.metadata`; its safetensors storage says in each file's header what part of which
tensor is there, and needs none. So nothing here is ever unpickled.
"""

import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from equilibria.durable import flush_folder, remove_leftovers, rename_durably, unnamed_folder, write_durably
from equilibria.errors import UserError
from equilibria.formats import read_json
from equilibria.inference.manifest import check_manifest, write_manifest
from equilibria.inference.run_folder import CheckpointIndex, RunFolder
from equilibria.training.distributed import ALONE, World

MODEL_FILE = "model.safetensors"
TRAINER_FOLDER = "trainer"
SCALARS_FILE = "trainer.json"

T = TypeVar("T")

Layout = Callable[[str, torch.Size, torch.dtype], Tensor | None]
"""From a tensor's name, shape and type to an empty one to read it into; None where it is not wanted."""


@dataclass(frozen=True)
class Checkpoint:
    """What training goes on from.

    Attributes:
        trainer: all that is a tensor: weights, optimizer, average, segment memory, random states, running sums. A
            tensor that is not a share of one is taken to be the same in all processes that name it.
        scalars: everything else, as the json module writes it; that of the process of rank 0.
    """

    trainer: Mapping[str, Tensor]
    scalars: Mapping[str, object]


def save_checkpoint(
    folder: RunFolder,
    step: int,
    weights: Mapping[str, Tensor],
    checkpoint: Checkpoint,
    best: bool,
    kept: int = 2,
    world: World = ALONE,
) -> None:
    """Saves a checkpoint as the last one (and the best one), then removes the oldest.

    The files are written under a temporary name, flushed to the disk and renamed; only then does the index,
    replaced in one go, point to them. Whenever a process is killed, the index names a complete checkpoint.
    One that the index names already is not written again.

    Args:
        folder: the run.
        step: optimizer steps finished; names the checkpoint.
        weights: to evaluate, by name, whole; those of the process of rank 0 are saved.
        checkpoint: what to go on from.
        best: whether this is the best one so far.
        kept: how many of the last ones stay, beside the best.
        world: the processes, which must all call.

    Raises:
        UserError: the disk is full or cannot be written; what was saved earlier stays.
    """
    previous = world.told(folder.index() if world.main else None)
    name = f"step-{step}"
    index = CheckpointIndex(name, name if best else previous.best if previous else None)
    partial: Path | None = None
    try:
        if previous and name in (previous.last, previous.best):
            _by_main(world, lambda: write_index(folder, index))
            return
        partial = _by_main(world, lambda: _begin(folder.checkpoints / name))
        _write_trainer(partial / TRAINER_FOLDER, checkpoint.trainer, world)
        _by_main(world, lambda: _complete(folder, partial, weights, checkpoint, index))
    except (OSError, CheckpointException) as problem:
        if world.main and partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
        stays = f"{previous.last} stays" if previous else "nothing had been saved before"
        raise UserError(
            f"the checkpoint of step {step} cannot be saved in {folder.checkpoints} ({_cause(problem)}); {stays}; "
            f"free some space and resume"
        ) from problem
    if world.main:
        _prune(folder, kept)


def write_index(folder: RunFolder, index: CheckpointIndex) -> None:
    """Replaces the index file in one go."""
    write_durably(folder.index_file, json.dumps(asdict(index)) + "\n")


def sound_checkpoint(folder: RunFolder) -> tuple[Path, list[str]]:
    """The last checkpoint whose files are all what was saved, and what is wrong with those after it.

    Those after it are set aside under other names, and the index names what is left.

    Raises:
        UserError: there is none.
    """
    index = folder.index()
    assert index is not None  # something has been saved
    last = folder.checkpoints / index.last
    problems = [] if last.is_dir() else [f"{last} is missing"]
    damaged: list[Path] = []
    for path in sorted(folder.checkpoints.glob("step-*"), key=step_of, reverse=True):
        if step_of(path) > step_of(last):
            continue  # left by a run that was killed before its index pointed to it
        try:
            check_manifest(path)
        except UserError as problem:
            problems.append(str(problem))
            damaged.append(path)
            continue
        if problems:
            _fall_back(folder, path, damaged)
        return path, problems
    raise UserError(
        f"no checkpoint of {folder.path} can be resumed from: {'; '.join(problems)}; restore one, or start a new run"
    )


def read_checkpoint(path: Path, layout: Layout | None = None, world: World = ALONE) -> Checkpoint:
    """Reads what training goes on from; each process may want other tensors.

    Args:
        path: of the checkpoint's folder.
        layout: where to put each tensor; all whole, on the CPU, when None.
        world: the processes, which must all call.

    Raises:
        UserError: a file is missing or damaged.
    """
    try:
        scalars = _read_scalars(path)
        trainer = _read_trainer(path / TRAINER_FOLDER, layout or _whole, world)
    except UserError:
        raise
    except Exception as problem:  # DCP raises whatever a damaged header leads it to
        raise UserError(
            f"{path} is incomplete or damaged ({_cause(problem)}); restore it, or name another checkpoint as "
            f'"last" in {path.parent / "index.json"}'
        ) from problem
    return Checkpoint(trainer, scalars)


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    number = path.name.removeprefix("step-")
    return int(number) if number.isdecimal() else -1


def _by_main(world: World, action: Callable[[], T]) -> T:
    """The process of rank 0 does it, and all get what came of it; where it fails, all raise OSError."""
    problem: str | None = None
    results: list[T] = []
    if world.main:
        try:
            results.append(action())
        except (OSError, SafetensorError) as failure:
            problem = str(failure)
    problem, results = world.told((problem, results))
    if problem is not None:
        raise OSError(problem)
    return results[0]


def _begin(path: Path) -> Path:
    """The folder that becomes the checkpoint `path`, as far as it is made before the processes write to it."""
    partial = unnamed_folder(path)
    (partial / TRAINER_FOLDER).mkdir()
    return partial


def _complete(
    folder: RunFolder, partial: Path, weights: Mapping[str, Tensor], checkpoint: Checkpoint, index: CheckpointIndex
) -> None:
    """Adds what is written once, gives the folder its name and points the index to it."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in weights.items()}
    save_file(tensors, partial / MODEL_FILE)
    (partial / SCALARS_FILE).write_text(json.dumps(checkpoint.scalars, indent=1), encoding="utf-8")
    write_manifest(partial)
    flush_folder(partial)
    target = folder.checkpoints / index.last
    if target.exists():  # left by a run that was killed before its index pointed to it
        shutil.rmtree(target)
    rename_durably(partial, target)
    write_index(folder, index)


def _write_trainer(folder: Path, tensors: Mapping[str, Tensor], world: World) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # DCP says that one process is one process
        save(
            {name: tensor.detach() for name, tensor in tensors.items()},
            storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True),
            no_dist=world.size == 1,
        )


def _read_trainer(folder: Path, layout: Layout, world: World) -> dict[str, Tensor]:
    reader = HuggingFaceStorageReader(str(folder))
    tensors: dict[str, Tensor] = {}
    for name, entry in reader.read_metadata().state_dict_metadata.items():
        assert isinstance(entry, TensorStorageMetadata)
        tensor = layout(name, entry.size, entry.properties.dtype)
        if tensor is not None:
            tensors[name] = tensor
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        load(dict(tensors), storage_reader=reader, no_dist=world.size == 1)
    return tensors


def _read_scalars(path: Path) -> dict[str, object]:
    return read_json(path / SCALARS_FILE, dict)


def _whole(name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype)


def _fall_back(folder: RunFolder, sound: Path, damaged: list[Path]) -> None:
    """Makes a checkpoint the last one, and sets those aside that it stands in for."""
    for path in damaged:
        aside = path.with_name(f"damaged-{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        rename_durably(path, aside)
    step = _read_scalars(sound).get("best_step")
    best = folder.checkpoints / f"step-{step}"
    try:
        check_manifest(best)
    except UserError:
        write_index(folder, CheckpointIndex(sound.name))
    else:
        write_index(folder, CheckpointIndex(sound.name, best.name))


def _cause(problem: BaseException) -> str:
    """What went wrong, in a line; of DCP's report, what went wrong in each process."""
    if not isinstance(problem, CheckpointException):
        return str(problem)
    return "; ".join(f"process {rank}: {failure[0]}" for rank, failure in problem.failures.items())


def _prune(folder: RunFolder, kept: int) -> None:
    """Removes all checkpoints but the last `kept` and the best, and what unfinished saves left."""
    index = folder.index()
    assert index is not None  # just written
    steps = sorted(folder.checkpoints.glob("step-*"), key=step_of)
    last = folder.checkpoints / index.last
    staying = {path.name for path in [path for path in steps if step_of(path) <= step_of(last)][-kept:]}
    for entry in steps:
        if entry.name not in staying | {index.last, index.best}:
            shutil.rmtree(entry, ignore_errors=True)
    remove_leftovers(folder.checkpoints)
