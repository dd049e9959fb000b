"""What the pictures of the gallery share: their look, and where they are written."""

import os
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from picture import png

HERE = Path(__file__).parent


FOLDER = Path(os.environ.get("PICTURES", HERE.parents[1] / "docs" / "pictures"))
BLUE, ORANGE, GREEN, GREY = "tab:blue", "tab:orange", "tab:green", "tab:gray"

plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left"})
plt.rcParams.update({"figure.constrained_layout.use": True, "font.size": 9, "axes.titlesize": 10})


def save(figure: Figure, name: str) -> None:
    """Writes a figure of at most 7.2 inches in width, so that it is readable at 700 pixels."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"gallery-{name}.png").write_bytes(png(figure, dpi=120))
    plt.close(figure)
