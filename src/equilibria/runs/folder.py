"""The layout of a run folder: the one place that knows its file names."""

import warnings
from dataclasses import dataclass
from pathlib import Path

from equilibria.errors import UserError, nearest
from equilibria.files.manifest import MANIFEST
from equilibria.runs.index import CheckpointIndex, latest_first, read_index, rebuilt_index, step_of


class _Entry:
    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, run: "RunFolder", owner: type) -> Path:
        return run.path / self._name


@dataclass(frozen=True)
class RunFolder:
    """Paths inside a run folder, and the reading of its checkpoint index."""

    path: Path

    config = _Entry("config.toml")
    """The recipe as it was run."""
    metrics = _Entry("metrics.jsonl")
    """One JSON object per line: training, validation and events."""
    launch = _Entry(".launch")
    """What the start of processes by torchrun was called that made the folder."""
    lock = _Entry(".lock")
    """The file that whoever writes the run holds locked."""
    writer = _Entry(".writer.json")
    """Who that is."""
    keeping = _Entry(".keeping")
    """The file that is locked while something is written beside the training."""
    tokenizer = _Entry("tokenizer.json")
    """The tokenizer, copied here so that the run does not depend on the data cache."""
    manifest = _Entry(MANIFEST)
    """The digest of the tokenizer; checkpoints have manifests of their own, and the recipe its digest in itself."""
    checkpoints = _Entry("checkpoints")
    """The folder of `step-N` folders and `index.json`."""
    index_file = _Entry("checkpoints/index.json")
    """The file that says which checkpoint is the last and which the best."""
    evaluation = _Entry("evaluation.json")
    """The figures of the last evaluation."""
    sample = _Entry("sample.json")
    """The last text that was written with the run's model."""
    tensorboard = _Entry("tensorboard")
    """The folder of TensorBoard's files."""
    report = _Entry("report.html")
    """The page about the run."""

    @classmethod
    def named(cls, path: Path) -> "RunFolder | None":
        """The run that a path names: its folder, or the recipe in it; None where it names none."""
        for folder in (cls(path), cls(path.parent)):
            if path in (folder.path, folder.config) and folder.config.is_file() and folder.checkpoints.is_dir():
                return folder
        return None

    @property
    def imported(self) -> bool:
        """Whether an importer made it: a training saves no step 0."""
        return (self.checkpoints / "step-0").is_dir()

    @property
    def saved(self) -> bool:
        """Whether a checkpoint has ever been saved, whatever has become of it."""
        visible = (path for path in self.checkpoints.glob("*step-*") if not path.name.startswith("."))
        return self.index_file.exists() or any(visible)

    def index(self) -> CheckpointIndex | None:
        """What the index file says, or, with a warning, what it must have said where it is lost or damaged; None where
        nothing has been saved yet.

        Raises:
            UserError: it is lost, and so are the checkpoints.
        """
        if not self.saved:
            return None
        try:
            return read_index(self.index_file)
        except UserError as problem:
            index = rebuilt_index(self.checkpoints)
            warnings.warn(f"{problem}; by what is there, {index.last} is the last checkpoint", stacklevel=1)
            return index

    def best_step(self) -> int | None:
        """The optimizer step of the checkpoint `"best"`; None where nothing has been saved.

        Raises:
            UserError: as for `index`.
        """
        index = self.index()
        return None if index is None else step_of(Path(index.best or index.last))

    def checkpoint(self, name: str) -> Path:
        """The folder of a checkpoint.

        Args:
            name: `"last"`, `"best"` (the last one before the first evaluation) or `"step-N"`.

        Raises:
            UserError: there is no such run, or no such checkpoint in it.
        """
        if not self.config.is_file() and not self.checkpoints.is_dir():
            raise UserError(no_run(self.path))
        index = self.index()
        if index is None:
            raise UserError(f"{self.path} holds no checkpoint yet; train until the first one is saved")
        named = {"last": index.last, "best": index.best or index.last}
        folder = self.checkpoints / named.get(name, name)
        if name in named and not folder.is_dir() and self.index() != index:
            return self.checkpoint(name)  # a training has saved another and removed this one meanwhile
        if not folder.is_dir():
            present = [entry.name for entry in reversed(latest_first(self.checkpoints))]
            others = ", ".join(present) or "none"
            likely = {"latest": "last"}.get(name, f"step-{name}" if name.isdigit() else name)
            close = nearest(likely, [*named, *present])
            meant = f'; did you mean "{close}"?' if close else ""
            raise UserError(f"there is no checkpoint {folder.name} in {self.checkpoints} (present: {others}){meant}")
        return folder


_ANY = "give one that `equilibria train` made or `equilibria models` lists"


def no_run(path: Path) -> str:
    """That there is no run folder at a path, and which may be meant: one around it, in it, beside it or in `runs`."""
    around = next((run for run in map(RunFolder.named, path.parents) if run is not None), None)
    if around is not None:
        within = path if step_of(path) is not None else path.parent
        checkpoint = "" if step_of(within) is None else f" (eval, generate and serve take --checkpoint {within.name})"
        return f"{path} is inside the run {around.path}; name that{checkpoint}"
    if path.is_file():
        train = f"; if it is a recipe, train it first: equilibria train {path}" if path.suffix == ".toml" else ""
        return f"{path} is a file, and no run folder{train}"
    if path.is_dir():
        places = (*sorted(path.glob("*/config.toml")), *sorted(path.glob("runs/*/config.toml")))
        inside = next((place.parent for place in places), None)
        return f"{path} is a folder without a run; " + (f"name one in it, such as {inside}" if inside else _ANY)
    places = {place for parent in (path.parent, Path("runs")) for place in parent.glob("*/config.toml")}
    runs = {place.parent.name: str(place.parent) for place in sorted(places)}
    close = nearest(path.name, runs)
    instead = f"the nearest is {runs[close]}" if close else _ANY
    return f"there is no run folder {path}; {instead}"
