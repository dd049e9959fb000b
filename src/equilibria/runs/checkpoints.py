"""Checkpoints: all processes write one together, whole or not at all, and never at the cost of an earlier one.

    step-N/model.safetensors    the weights to evaluate, gathered: all that anything but training reads
    step-N/trainer/             the tensors to resume from, a file per process
    step-N/trainer.json         the rest of what to resume from
    step-N/manifest.json        sizes and digests of all of these

`trainer/` is a checkpoint of PyTorch's DCP, which reshards tensors for any number of processes. Its own file format
keeps a pickle beside the tensors, `.metadata`. Its safetensors storage needs none: the header of each file says which
part of which tensor it holds. So nothing here is ever unpickled.
"""

import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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

from equilibria.distributed import ALONE, World
from equilibria.errors import UserError
from equilibria.files.durable import flush_folder, remove_leftovers, rename_durably, unnamed_folder
from equilibria.files.formats import read_json
from equilibria.files.manifest import check_manifest, write_manifest
from equilibria.runs import index as indexing
from equilibria.runs.folder import RunFolder
from equilibria.runs.index import FORMAT, MODEL_FILE, SCALARS_FILE, CheckpointIndex, latest_first, step_of, write_index

TRAINER_FOLDER = "trainer"

T = TypeVar("T")

Layout = Callable[[str, torch.Size, torch.dtype], Tensor | None]
"""From a tensor's name, shape and type to an empty one to read it into; None to skip it."""


@dataclass(frozen=True)
class Checkpoint:
    """The state to resume training from.

    Attributes:
        trainer: all tensors: weights, optimizer, average, segment memory, random states, running sums. A tensor that is
            not sharded is taken to be the same in all processes that name it.
        scalars: everything else, as the json module writes it; from rank 0.
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
    """Saves a checkpoint as the last one (and the best one), then removes the oldest of the run's own.

    The files are written under a temporary name, flushed to the disk and renamed; only then is the index replaced.
    Whenever a process is killed, the index names a complete checkpoint. One that it names already is not written again.

    Args:
        folder, step: the run, and its optimizer steps so far.
        weights: to evaluate, gathered; those of rank 0 are saved.
        checkpoint: what to resume from.
        best: whether this is the best one so far.
        kept: how many of the last ones to keep, beside the best.
        world: the processes, which must all call.

    Raises:
        UserError: it cannot be written; what was saved earlier stays.
    """
    previous = world.broadcast(_known(folder) if world.main else None)
    name = f"step-{step}"
    index = CheckpointIndex(name, name if best else previous.best if previous else None, _own(folder, previous, name))
    partial: Path | None = None
    try:
        if previous and name in (previous.last, previous.best):
            _by_main(world, lambda: write_index(folder.index_file, index))
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
        _prune(folder, index, kept)


def sound_checkpoint(folder: RunFolder) -> tuple[Path, list[str]]:
    """The latest checkpoint whose files are all as saved, and messages about how it was found.

    Later ones are set aside under other names. The index is rebuilt if it is lost or names another one.

    Raises:
        UserError: there is none, or the run is an import that has not been trained.
    """
    index, messages, damaged = None, [], []
    try:
        index = indexing.read_index(folder.index_file)
    except UserError as problem:
        messages.append(f"{problem}; rebuilt it from the existing checkpoints")
    last = folder.checkpoints / ("step-0" if index is None else index.last)
    if index is not None and not last.is_dir():
        messages.append(f"{last} is missing; going back to the checkpoint before it")
    for path in latest_first(folder.checkpoints):
        try:
            check_manifest(path)
        except UserError as problem:
            messages.append(f"{problem}; going back to the checkpoint before it")
            damaged.append(path)
            continue
        if not (path / SCALARS_FILE).exists():
            raise UserError(f"{folder.path} was imported and never trained; {start_from(folder)}")
        for other in damaged:
            _set_aside(other, "damaged")
        if index is not None and (step_of(path) or 0) > (step_of(last) or 0):
            messages.append(f"{path} is later than {folder.index_file.name} says, and whole; resuming from it")
        if index is None or index.last != path.name:
            write_index(folder.index_file, indexing.index_at(path, () if index is None else index.own))
        return path, messages
    raise UserError(
        f"no checkpoint of {folder.path} can be resumed from: {'; '.join(messages)}; restore one, or start a new run"
    )


def start_from(folder: RunFolder) -> str:
    """How to train what was imported."""
    return (
        f"start from its weights: `equilibria train {folder.config} --run.name NAME "
        f"--training.initial_weights {folder.path}`"
    )


def read_checkpoint(path: Path, layout: Layout | None = None, world: World = ALONE) -> Checkpoint:
    """Reads the state to resume from a checkpoint's folder; all processes must call, and may read other tensors.

    Without a `layout`, all tensors are read, whole, onto the CPU.

    Raises:
        UserError: a file is missing or damaged.
    """
    try:
        scalars = read_json(path / SCALARS_FILE, dict)
        trainer = _read_trainer(path / TRAINER_FOLDER, layout or _whole, world)
    except UserError:
        raise
    except Exception as problem:  # DCP raises whatever a damaged header leads it to
        raise UserError(
            f"{path} is incomplete or damaged ({_cause(problem)}); restore it, or move it away to resume from the "
            f"checkpoint before it"
        ) from problem
    return Checkpoint(trainer, scalars)


def _by_main(world: World, action: Callable[[], T]) -> T:
    """Rank 0 runs the action and broadcasts the result; if it fails, all processes raise OSError."""
    problem: str | None = None
    results: list[T] = []
    if world.main:
        try:
            results.append(action())
        except (OSError, SafetensorError) as failure:
            problem = str(failure)
    problem, results = world.broadcast((problem, results))
    if problem is not None:
        raise OSError(problem)
    return results[0]


def _begin(path: Path) -> Path:
    partial = unnamed_folder(path)
    (partial / TRAINER_FOLDER).mkdir()
    return partial


def _complete(
    folder: RunFolder, partial: Path, weights: Mapping[str, Tensor], checkpoint: Checkpoint, index: CheckpointIndex
) -> None:
    tensors = {name: tensor.detach().contiguous() for name, tensor in weights.items()}
    save_file(tensors, partial / MODEL_FILE, FORMAT)
    (partial / SCALARS_FILE).write_text(json.dumps(checkpoint.scalars, indent=1), encoding="utf-8")
    write_manifest(partial)
    flush_folder(partial)
    target = folder.checkpoints / index.last
    if target.exists():  # somebody else put it there
        _set_aside(target, "replaced")
    rename_durably(partial, target)
    write_index(folder.index_file, index)


def _write_trainer(folder: Path, tensors: Mapping[str, Tensor], world: World) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # DCP warns that there is a single process
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


def _whole(name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype)


def _known(folder: RunFolder) -> CheckpointIndex | None:
    """The index; None, too, if all checkpoints are lost: what is in memory is still worth saving."""
    try:
        return folder.index()
    except UserError:
        return None


def _own(folder: RunFolder, previous: CheckpointIndex | None, name: str) -> tuple[str, ...]:
    earlier = () if previous is None else previous.own
    return (*(own for own in earlier if own != name and (folder.checkpoints / own).is_dir()), name)


def _set_aside(path: Path, what: str) -> None:
    aside, number = path.with_name(f"{what}-{path.name}"), 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{what}-{path.name}-{number}")
    rename_durably(path, aside)


def _cause(problem: BaseException) -> str:
    """The cause in one line; for DCP, the cause in each process."""
    if not isinstance(problem, CheckpointException):
        return str(problem)
    return "; ".join(f"process {rank}: {failure[0]}" for rank, failure in problem.failures.items())


def _prune(folder: RunFolder, index: CheckpointIndex, kept: int) -> None:
    """Removes the run's own checkpoints except the last `kept` and the best, and leftovers of unfinished saves."""
    own = sorted((folder.checkpoints / name for name in index.own), key=lambda path: step_of(path) or 0)
    for path in own[:-kept]:
        if path.name not in (index.last, index.best):
            shutil.rmtree(path, ignore_errors=True)
    remove_leftovers(folder.checkpoints)
