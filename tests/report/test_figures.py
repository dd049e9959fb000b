"""Plots are plain SVG elements that take their colours from the page."""

import re
import sys
from xml.etree import ElementTree

import pytest

from equilibria.errors import UserError
from equilibria.report.figures import Curve, Plot, draw


def plot(name: str, logarithmic: bool = False) -> Plot:
    curves = (
        Curve("training", [1, 2, 3], [3.0, 2.0, float("inf")], "train"),
        Curve("validation", [1, 3], [3.0, 2.5], "valid", "--", markers=True),
    )
    return Plot(name, "A title", "steps", "loss (nats)", curves, [("trigram", 2.7)], logarithmic)


@pytest.mark.parametrize("logarithmic", [False, True])
def test_an_svg_element_with_its_text(logarithmic: bool) -> None:
    svg = draw(plot("one", logarithmic))
    element = ElementTree.fromstring(svg)
    text = " ".join("".join(part.itertext()) for part in element.iter("{http://www.w3.org/2000/svg}text"))
    for label in ("A title", "steps", "loss (nats)", "training", "validation", "trigram"):
        assert label in text
    assert element.get("viewBox") is not None
    assert element.get("width") is None  # the page decides
    assert element.get("aria-label") == "A title"


def test_colours_come_from_the_page() -> None:
    svg = draw(plot("one"))
    assert {"--train", "--valid", "--axis", "--muted"} <= set(re.findall(r"var\((--\w+)\)", svg))
    assert not re.findall(r"(?:fill|stroke): #(?!000000|ffffff)\w+", svg)


def test_two_plots_share_no_id_and_nothing_refers_outside() -> None:
    first, second = (draw(plot(name)) for name in ("one", "two"))
    ids = [re.findall(r'\bid="([^"]+)"', svg) for svg in (first, second)]
    assert not set(ids[0]) & set(ids[1])
    for svg, own in zip((first, second), ids, strict=True):
        referred = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg)
        assert {"".join(pair) for pair in referred} <= set(own)
        assert not re.search(r'href="(?!#)', svg)


def test_a_drawing_is_repeatable() -> None:
    assert draw(plot("one")) == draw(plot("one"))


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"pip install --force-reinstall matplotlib"):
        draw(plot("one"))


@pytest.mark.parametrize("heights", [[1e-2], [1e-2, 1e-2], [1.0, 1e-12], [3e-3, 0.0, float("nan")]])
@pytest.mark.parametrize("logarithmic", [False, True])
def test_any_heights_can_be_drawn(heights: list[float], logarithmic: bool) -> None:
    curves = [Curve("one", list(range(len(heights))), heights, "valid")]
    assert "<svg" in draw(Plot("one", "one", "x", "y", curves, logarithmic=logarithmic))
