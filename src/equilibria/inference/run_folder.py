"""The layout of a run folder: the one place that knows its file names."""

import json
from dataclasses import dataclass
from pathlib import Path

from equilibria.errors import UserError


@dataclass(frozen=True)
class CheckpointIndex:
    """Which checkpoints a run holds, by their folders; `best` is None before the first evaluation."""

    last: str
    best: str | None = None


@dataclass(frozen=True)
class RunFolder:
    """Paths inside a run folder, and the reading of its checkpoint index."""

    path: Path

    @classmethod
    def named(cls, path: Path) -> "RunFolder | None":
        """The run that a path names: its folder, or the recipe in it; None where it names none."""
        for folder in (cls(path), cls(path.parent)):
            if path in (folder.path, folder.config) and folder.config.is_file() and folder.checkpoints.is_dir():
                return folder
        return None

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
    def lock(self) -> Path:
        """The file that whoever writes the run holds locked."""
        return self.path / ".lock"

    @property
    def writer(self) -> Path:
        """Who that is."""
        return self.path / ".writer.json"

    @property
    def keeping(self) -> Path:
        """The file that is locked while something is written beside the training."""
        return self.path / ".keeping"

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
        try:
            entries = json.loads(self.index_file.read_text(encoding="utf-8"))
            last, best = entries["last"], entries.get("best")
            if not isinstance(last, str) or not isinstance(best, str | None):
                raise TypeError("names of checkpoints must be strings")
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise UserError(
                f"{self.index_file} is damaged ({problem}); write it anew as "
                f'{{"last": "step-N", "best": "step-M"}} with the folders that are beside it'
            ) from problem
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
