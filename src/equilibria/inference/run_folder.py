"""The layout of a run folder: the one place that knows its file names."""

import re
from dataclasses import dataclass
from pathlib import Path

from equilibria.errors import UserError
from equilibria.formats import is_file_name, read_json


@dataclass(frozen=True)
class CheckpointIndex:
    """Which checkpoints a run holds, by their folders; `best` is None before the first evaluation."""

    last: str
    best: str | None = None


@dataclass(frozen=True)
class RunFolder:
    """Paths inside a run folder, and the reading of its checkpoint index."""

    path: Path

    @property
    def config(self) -> Path:
        """The recipe as it was run."""
        return self.path / "config.toml"

    @property
    def metrics(self) -> Path:
        """One JSON object per line: training, validation and events."""
        return self.path / "metrics.jsonl"

    @property
    def launch(self) -> Path:
        """What the start of processes by torchrun was called that made the folder."""
        return self.path / ".launch"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer, copied here so that the run does not depend on the data cache."""
        return self.path / "tokenizer.json"

    @property
    def checkpoints(self) -> Path:
        """The folder of `step-N` folders and `index.json`."""
        return self.path / "checkpoints"

    @property
    def index_file(self) -> Path:
        """The file that says which checkpoint is the last and which the best."""
        return self.checkpoints / "index.json"

    @property
    def evaluation(self) -> Path:
        """The figures of the last evaluation."""
        return self.path / "evaluation.json"

    @property
    def sample(self) -> Path:
        """The last text that was written with the run's model."""
        return self.path / "sample.json"

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard's files."""
        return self.path / "tensorboard"

    @property
    def report(self) -> Path:
        """The page about the run."""
        return self.path / "report.html"

    def index(self) -> CheckpointIndex | None:
        """What the index file says; None where nothing has been saved yet.

        Raises:
            UserError: the file is damaged.
        """
        if not self.index_file.exists():
            return None
        mend = 'write it anew as {"last": "step-N", "best": "step-M"} with the folders that are beside it'
        entries = read_json(self.index_file, dict, mend)
        last, best = entries.get("last"), entries.get("best")
        if not (is_file_name(last) and re.fullmatch("step-[0-9]{1,18}", last)):
            raise UserError(f"{self.index_file} is damaged (its last checkpoint is none); {mend}")
        if not (best is None or is_file_name(best)):
            raise UserError(f"{self.index_file} is damaged (its best checkpoint is none); {mend}")
        return CheckpointIndex(last, best)

    def best_step(self) -> int | None:
        """The optimizer step of the checkpoint `"best"`; None where nothing has been saved or its name does not say.

        Raises:
            UserError: the index file is damaged.
        """
        index = self.index()
        if index is None:
            return None
        number = (index.best or index.last).removeprefix("step-")
        return int(number) if number.isdecimal() else None

    def checkpoint(self, name: str) -> Path:
        """The folder of a checkpoint.

        Args:
            name: `"last"`, `"best"` (the last one before the first evaluation) or `"step-N"`.

        Raises:
            UserError: there is no such run, or no such checkpoint in it.
        """
        if not self.path.is_dir():
            raise UserError(f"there is no run folder {self.path}; give the path of one that `equilibria train` made")
        index = self.index()
        if index is None:
            raise UserError(f"{self.path} holds no checkpoint yet; train until the first one is saved")
        named = {"last": index.last, "best": index.best or index.last}
        folder = self.checkpoints / named.get(name, name)
        if not folder.is_dir():
            present = ", ".join(sorted(entry.name for entry in self.checkpoints.glob("step-*"))) or "none"
            raise UserError(f"there is no checkpoint {folder.name} in {self.checkpoints} (present: {present})")
        return folder
