"""Figures as small PNG files."""

import io

from matplotlib.figure import Figure
from PIL import Image


def png(figure: Figure, dpi: int) -> bytes:
    """A figure in 128 colours of its own."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi, facecolor="white")
    image = Image.open(drawn).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    image.save(small, format="png", optimize=True)
    return small.getvalue()
