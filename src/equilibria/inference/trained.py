"""The trained models that come with the package, by name: three files and a card each."""

from dataclasses import dataclass
from pathlib import Path

from equilibria.errors import UserError, nearest
from equilibria.files.manifest import check_manifest
from equilibria.runs.folder import RunFolder
from equilibria.runs.index import MODEL_FILE

FOLDER = Path(__file__).parents[1] / "trained"
CARD = "README.md"


@dataclass(frozen=True)
class TrainedModel:
    """A trained model of the package.

    Attributes:
        name: that of its folder.
        folder: with its weights, recipe, tokenizer, figures and card.
    """

    name: str
    folder: Path

    @property
    def card(self) -> str:
        """What it was trained on, how well it does, and how it was made; Markdown."""
        return (self.folder / CARD).read_text(encoding="utf-8")

    @property
    def title(self) -> str:
        """What it is: the first paragraph of its card."""
        return " ".join(self.card.split("\n\n")[1].split())


def trained_models() -> dict[str, TrainedModel]:
    """All trained models of the package, by name."""
    folders = sorted(weights.parent for weights in FOLDER.glob(f"*/{MODEL_FILE}"))
    return {folder.name: TrainedModel(folder.name, folder) for folder in folders}


def weights_at(path: Path) -> Path:
    """The weights that a path names: those in a folder that was given away, and where there is nothing but the path is
    the name of a model of the package, that model's; anything else, a run too, is the path itself.

    Raises:
        UserError: they, their recipe or their tokenizer are not what was exported.
    """
    model = None if path.exists() else trained_models().get(path.as_posix())
    if not (path.exists() or model or len(path.parts) > 1 or ("runs" / path).exists()):
        close = nearest(path.name, trained_models())
        if close is not None:
            raise UserError(f"there is no run folder {path}; the nearest is {close}, a model of the package")
    folder = RunFolder(path if model is None else model.folder)
    weights = folder.path / MODEL_FILE
    if folder.checkpoints.exists() or not (weights.is_file() and folder.config.is_file()):
        return path
    try:
        check_manifest(folder.path)
    except UserError as problem:
        raise UserError(f"{problem}; restore it, or export the run again") from problem
    return weights
