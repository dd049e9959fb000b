"""The checkpoints of a run: which there are, which is the last and which the best."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from equilibria.errors import UserError
from equilibria.files.durable import write_durably
from equilibria.files.formats import read_json
from equilibria.files.manifest import check_manifest
from equilibria.files.seal import read_sealed_json, sealed_json

MODEL_FILE = "model.safetensors"
FORMAT = {"format": "pt"}  # in its header, where other libraries look for it
SCALARS_FILE = "trainer.json"

_NAME = re.compile(r"step-(0|[1-9][0-9]{0,17})")


@dataclass(frozen=True)
class CheckpointIndex:
    """Which checkpoints a run holds, by their folders.

    Attributes:
        last: what training resumes from.
        best: by validation loss; None before the first evaluation.
        own: those that the run has written itself and may remove, removed or not; others are none of its business.
    """

    last: str
    best: str | None = None
    own: tuple[str, ...] = field(default=(), compare=False)


def step_of(path: Path) -> int | None:
    """The step in the name of a checkpoint's folder; None where it is not that of one."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def latest_first(checkpoints: Path) -> list[Path]:
    """The folders of checkpoints that are there, whole or not."""
    steps = [(step, path) for path in checkpoints.glob("step-*") if (step := step_of(path)) is not None]
    return [path for _, path in sorted(steps, reverse=True) if path.is_dir()]


def read_index(file: Path) -> CheckpointIndex:
    """What an index says; a UserError where the file is missing or damaged."""
    match read_sealed_json(file):
        case {"last": str(last), "best": str() | None as best, "own": [*own]} if all(
            isinstance(name, str) and _NAME.fullmatch(name) for name in (last, last if best is None else best, *own)
        ):
            return CheckpointIndex(last, best, tuple(own))
    raise UserError(f"{file} is damaged (it does not name checkpoints)")


def write_index(file: Path, index: CheckpointIndex) -> None:
    """Replaces an index in one go."""
    write_durably(file, sealed_json(asdict(index)))


def rebuilt_index(checkpoints: Path) -> CheckpointIndex:
    """What the index of a folder of checkpoints must have said: its last one is the latest that is what was saved.

    Raises:
        UserError: there is none; says what is wrong with each.
    """
    problems: list[str] = []
    for path in latest_first(checkpoints):
        try:
            check_manifest(path)
        except UserError as problem:
            problems.append(str(problem))
        else:
            return index_at(path)
    raise UserError(f"no checkpoint in {checkpoints} is what was saved: {'; '.join(problems) or 'there is none'}")


def index_at(last: Path, own: Sequence[str] = ()) -> CheckpointIndex:
    """The index of a run whose last checkpoint is that one: it knows which was the best, if that is whole."""
    try:
        step = read_json(last / SCALARS_FILE, dict)["best_step"]
        check_manifest(last.with_name(f"step-{step}"))
    except (UserError, KeyError):  # one that was imported has none
        return CheckpointIndex(last.name, None, tuple(own))
    return CheckpointIndex(last.name, f"step-{step}", tuple(own))
