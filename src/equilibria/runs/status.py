"""How far a run has come, from what its folder says; whether that is far enough is for its recipe to say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from equilibria.errors import UserError
from equilibria.runs.folder import RunFolder
from equilibria.runs.index import step_of
from equilibria.runs.lock import LockHolder, writer_of
from equilibria.runs.metrics import read_metrics


@dataclass(frozen=True)
class RunStatus:
    """How far a run has come. Each part is read when it is asked for, so damage to one does not hide the others.

    Args:
        folder: of the run, which need not exist.

    Raises:
        UserError: what is asked for is damaged.
    """

    folder: RunFolder

    @property
    def started(self) -> bool:
        """Whether its recipe has been written."""
        return self.folder.config.is_file()

    @cached_property
    def step(self) -> int:
        """Optimizer steps of its last checkpoint; 0 without one."""
        index = self.folder.index()
        return 0 if index is None else step_of(Path(index.last)) or 0

    @cached_property
    def writer(self) -> LockHolder | None:
        """Who writes it now."""
        return writer_of(self.folder)

    @cached_property
    def evaluations(self) -> Sequence[Mapping[str, object]]:
        """The lines of validation in its metrics, the oldest first."""
        if not self.folder.metrics.is_file():
            return ()
        return [line for line in read_metrics(self.folder.metrics) if line.get("kind") == "valid"]

    @cached_property
    def best_loss(self) -> float | None:
        """Validation loss of its best checkpoint, in nats per token; None before there is one."""
        # not the least of all: those at the depth of a warm-up are of another model
        best = self.folder.best_step()
        lines = [line for line in self.evaluations if line["step"] == best]
        if not lines:
            return None
        loss = lines[-1].get("loss", "missing")
        if not isinstance(loss, float | None):
            raise UserError(f"{self.folder.metrics} is damaged: the loss of step {best} is no number; delete that line")
        return loss
