"""All runs below a folder, of sweeps or not: how far each has come, and what it takes on the disk."""

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from equilibria.configuration import Recipe, RunRecipe, read_recipe
from equilibria.errors import UserError
from equilibria.runs.folder import RunFolder
from equilibria.sweep.runs import State, sweep_run


@dataclass(frozen=True)
class ListedRun:
    """A run that is listed.

    Attributes:
        folder: where it is.
        state: `"imported"` of another project's model that has not been trained; else as for `SweepRun`.
        step: optimizer steps of its last checkpoint.
        steps: those of the recipe; None where that cannot be read.
        loss: of the last validation in training, in nats per token; None before there is one.
        changed: when a file of it was last written, in seconds since 1970.
        size: bytes of its files.
        message: what there is to say besides: what is damaged, why it failed, who trains it; else "".
    """

    folder: Path
    state: State | Literal["imported"]
    step: int
    steps: int | None
    loss: float | None
    changed: float
    size: int
    message: str

    @property
    def resumable(self) -> bool:
        """Whether `equilibria train RUN --resume` goes on with it."""
        return self.state in ("unfinished", "failed")


def list_runs(folder: Path) -> list[ListedRun]:
    """All runs in a folder and the folders below it, or that which the folder itself is; the latest first.

    A run that cannot be read is listed as damaged.

    Raises:
        UserError: there is no such folder, or it cannot be read.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"{folder} {what}; expected a folder of runs, or nothing for the folder runs")
    try:
        next(folder.iterdir(), None)
    except OSError as problem:
        raise UserError(f"{folder} cannot be read ({problem.strerror}); get permission, or name another") from problem
    return sorted(map(_listed, _run_folders(folder)), key=lambda run: -run.changed)


def _run_folders(folder: Path) -> Iterator[Path]:
    """Run folders, none of which is inside another; links are followed to runs alone."""
    if _is_run(folder):
        yield folder
        return
    try:
        inner = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:  # of somebody else
        return
    for path in inner:
        if not path.is_symlink():
            yield from _run_folders(path)
        elif _is_run(path):
            yield path


def _is_run(folder: Path) -> bool:
    """Whether something has been trained or imported there, however little is left of it."""
    run = RunFolder(folder)
    return run.checkpoints.is_dir() and any(map(os.path.exists, (run.config, run.metrics, run.tokenizer, run.manifest)))


def _listed(path: Path) -> ListedRun:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        recipe, problem = _recipe(path)
        found = None if recipe is None else sweep_run(recipe)
    stats = [file.lstat() for file in (path, *path.rglob("*")) if os.path.lexists(file)]
    listed = ListedRun(
        folder=path,
        state="damaged",
        step=0,
        steps=None,
        loss=None,
        changed=max((stat.st_mtime for stat in stats), default=0.0),
        size=sum(stat.st_size for stat in stats),
        message=problem,
    )
    if recipe is None or found is None:
        return listed
    loss = found.figures.get("loss")
    return replace(
        listed,
        state="imported" if found.open and not found.step and RunFolder(path).imported else found.state,
        step=found.step,
        steps=recipe.training.steps,
        loss=loss if isinstance(loss, float) else None,
        message=found.message or "; ".join(dict.fromkeys(str(warning.message) for warning in heard)),
    )


def _recipe(path: Path) -> tuple[Recipe | None, str]:
    """The recipe of a run where it is now; None and why where it cannot be read."""
    place = path if path.name not in ("", "..") else path.resolve()
    config = RunFolder(path).config
    if not config.is_file():
        return None, f"{config} is missing; restore it"
    try:
        return read_recipe(config, (), RunRecipe(name=place.name, directory=place.parent)), ""
    except (UserError, OSError) as problem:
        return None, " ".join(str(problem).split())
