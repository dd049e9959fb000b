"""Plots as inline SVG that takes its colours from the page, so that one drawing suits light and dark."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite, log10
from typing import TYPE_CHECKING, Literal

from equilibria.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Dash = Literal["-", "--", ":"]
Role = Literal["train", "valid"]

_SIZE_INCHES = (4.3, 3.0)  # near the width of a phone, so that text is not scaled down there
_AXIS = "#7d8590"
_LABEL = "#7d8591"
_COLOURS = {"train": "#2f6fd0", "valid": "#d2601a", "reference": "#7d8592"}
_VARIABLES = {
    _AXIS: "--axis",
    _LABEL: "--muted",
    _COLOURS["train"]: "--train",
    _COLOURS["valid"]: "--valid",
    _COLOURS["reference"]: "--muted",
}


@dataclass(frozen=True)
class Curve:
    """One line of a plot: its role gives the colour; points that are not finite are not drawn."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    role: Role
    dash: Dash = "-"
    markers: bool = False

    def finite(self, positive: bool) -> tuple[list[float], list[float]]:
        """The points that can be drawn, on a logarithmic axis if `positive`."""
        points = [
            (x, y)
            for x, y in zip(self.x, self.y, strict=True)
            if isfinite(x) and isfinite(y) and (y > 0 or not positive)
        ]
        return [x for x, _ in points], [y for _, y in points]


@dataclass(frozen=True)
class Plot:
    """A plot.

    Attributes:
        name: unique on the page; its ids are made from it.
        title: also for screen readers.
        x_label, y_label: with units.
        references: horizontal lines, by label.
        logarithmic: whether the vertical axis is.
        whole: whether the vertical axis starts at 0 and counts.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    references: Sequence[tuple[str, float]] = ()
    logarithmic: bool = False
    whole: bool = False

    @property
    def empty(self) -> bool:
        return not any(curve.finite(self.logarithmic)[0] for curve in self.curves)


def draw(plot: Plot) -> str:
    """The plot as an `<svg>` element without its own colours; a UserError if matplotlib cannot be loaded."""
    try:
        from matplotlib import rc_context, rcParams
        from matplotlib.figure import Figure
    except ImportError as problem:
        said = f"matplotlib cannot be loaded ({problem}); pip install --force-reinstall matplotlib"
        raise UserError(said) from problem
    with rc_context():
        rcParams.update({"svg.fonttype": "none", "svg.hashsalt": plot.name, "font.size": 9, "axes.titlesize": 10})
        figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
        axes = figure.add_subplot()
        _draw_curves(axes, plot)
        _draw_axes(axes, plot)
        if len(plot.curves) > 1:
            below = {"loc": "outside lower left", "ncols": 2}  # where it hides no curve
            figure.legend(**below, frameon=False, labelcolor=_LABEL, fontsize=8, handlelength=2.2)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True)
    return _for_page(buffer.getvalue(), plot)


def _draw_curves(axes: "Axes", plot: Plot) -> None:
    for curve in plot.curves:
        x, y = curve.finite(plot.logarithmic)
        if not x:
            continue
        marker = "o" if (curve.markers and len(x) <= 60) or len(x) == 1 else None
        style = {"color": _COLOURS[curve.role], "linewidth": 1.6, "marker": marker, "markersize": 3.5}
        axes.plot(x, y, curve.dash, label=curve.label, **style)
    for label, height in plot.references:
        axes.axhline(height, color=_COLOURS["reference"], linewidth=1, linestyle=(0, (1, 2)))
        # Beside the plot, where no curve can run through it.
        place = {"xycoords": ("axes fraction", "data"), "xytext": (3, 0), "textcoords": "offset points"}
        axes.annotate(label, (1, height), **place, va="center", annotation_clip=False, color=_LABEL, fontsize=8)
    axes.autoscale_view()  # a line that was inside the limits already gets a margin too


def _draw_axes(axes: "Axes", plot: Plot) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator, NullFormatter

    axes.set_title(plot.title, loc="left", color=_LABEL)
    axes.set_xlabel(plot.x_label, color=_LABEL)
    axes.set_ylabel(plot.y_label, color=_LABEL)
    axes.tick_params(colors=_AXIS, labelcolor=_LABEL, length=3, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_AXIS)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(axis="y", color=_AXIS, alpha=0.25, linewidth=0.6)
    if plot.logarithmic:
        axes.set_yscale("log")
        axes.set_ylim(_whole_decades(plot))
        axes.yaxis.set_minor_formatter(NullFormatter())
    if plot.whole:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))


def _whole_decades(plot: Plot) -> tuple[float, float]:
    """Powers of ten around everything on a logarithmic axis, so that its labels are few and even."""
    heights = [y for curve in plot.curves for y in curve.finite(positive=True)[1]]
    heights += [height for _, height in plot.references if height > 0]
    low, high = floor(log10(min(heights))), ceil(log10(max(heights)))
    return 10.0 ** min(low, high - 1), 1.2 * 10.0**high


def _for_page(svg: str, plot: Plot) -> str:
    """The bare element: no prologue, no metadata, no ids that another plot has too, colours from the page."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', rf'\1 role="img" aria-label="{plot.title}"', svg, count=1)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg
