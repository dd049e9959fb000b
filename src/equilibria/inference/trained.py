"""The trained models that come with the package, by name: three files and a card each."""

from dataclasses import dataclass
from pathlib import Path

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
    def weights(self) -> Path:
        """The file that is loaded in its name."""
        return self.folder / MODEL_FILE

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
    """What is loaded in the name of a path: of a folder with weights alone that file, and where there is nothing but
    the path is the name of a model of the package, that model's; anything else as it is."""
    model = None if path.exists() else trained_models().get(path.as_posix())
    alone = path / MODEL_FILE if model is None else model.weights
    return alone if alone.is_file() else path
