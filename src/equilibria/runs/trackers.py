"""Trackers: other receivers of the metrics that go to `metrics.jsonl`.

A tracker is an object with `log` and `close`, so any service takes a few lines; the one for TensorBoard is here.
"""

import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from equilibria.errors import UserError
from equilibria.files.durable import reported

Record = Mapping[str, Any]


class Tracker(Protocol):
    """Takes the records of a run's metrics. In a distributed run only the first process calls it."""

    def log(self, record: Record) -> None:
        """Takes a record: a line of `metrics.jsonl`, with `kind`, `step`, `time` (in seconds) and figures."""

    def close(self) -> None:
        """Called once when the run has ended, however it ended."""


class TensorBoard:
    """Writes the figures for TensorBoard, as `train/loss` or `valid/perplexity`, and events as texts.

    Args:
        folder: for its files.
        step: the step to resume from; records of later steps are hidden.

    Raises:
        UserError: the package is missing, or the folder cannot be written.
    """

    def __init__(self, folder: Path, step: int) -> None:
        require_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        with reported(folder):
            self._writer = SummaryWriter(folder, purge_step=step + 1)

    def log(self, record: Record) -> None:
        kind, step, wall = record["kind"], record["step"], record["time"]
        for name, value in numbers(record).items():
            self._writer.add_scalar(f"{kind}/{name}", value, step, wall)
        if "message" in record:
            self._writer.add_text(kind, record["message"], step, wall)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def numbers(record: Record) -> dict[str, float]:
    """The figures of a record: its numbers other than step and time, without those that are None."""
    return {
        name: value
        for name, value in record.items()
        if name not in ("step", "time") and isinstance(value, int | float) and not isinstance(value, bool)
    }


def require_tensorboard() -> None:
    """Raises a UserError if the package tensorboard is missing."""
    if find_spec("tensorboard") is None:
        raise UserError(
            "training.tensorboard needs the package tensorboard, which is not installed; "
            'install it with pip install "equilibria[tensorboard]", or leave the key out'
        )


def survives(tracker: Tracker, call: Callable[[], None]) -> bool:
    """Whether a call of a tracker succeeds; otherwise warns that it is dropped: a failing tracker never stops a run."""
    try:
        call()
    except Exception as problem:  # whatever a service may raise
        name = type(tracker).__name__
        warnings.warn(f"the tracker {name} failed ({type(problem).__name__}: {problem}); it is dropped", stacklevel=3)
        return False
    return True
