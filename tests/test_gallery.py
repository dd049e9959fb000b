"""The programs of the gallery run and find what its page says; the page has their code and pictures.

`.venv/bin/python tests/test_gallery.py` brings the code on the page up to date.
"""

import re
import runpy
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "gallery.md"
PROGRAMS = ROOT / "examples" / "gallery"
PICTURES = ROOT / "docs" / "pictures"
HELPERS = ("drawing", "picture")
NAMES = sorted({file.stem for file in PROGRAMS.glob("*.py")}.difference(HELPERS))
SECTION = re.compile(r"^```python\n(.*?)^```\n\n\[The whole program\]\((.*?)\)", re.DOTALL | re.MULTILINE)


def code(name: str) -> str:
    """The lines of a program that matter."""
    text = (PROGRAMS / f"{name}.py").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^# --8<-- \[start:code\]\n(.*?)\s*^# --8<-- \[end:code\]$", text, re.DOTALL | re.MULTILINE)
    return f"{shown}\n"


def page() -> str:
    return PAGE.read_text(encoding="utf-8")


def updated(text: str) -> str:
    """The page with the code of the programs."""

    def section(match: re.Match[str]) -> str:
        return f"```python\n{code(Path(match[2]).stem)}```\n\n[The whole program]({match[2]})"

    return SECTION.sub(section, text)


def test_the_page_has_the_code_of_every_program() -> None:
    assert sorted(Path(program).stem for _, program in SECTION.findall(page())) == NAMES
    assert page().count("```python") == len(NAMES)
    assert updated(page()) == page(), "run `.venv/bin/python tests/test_gallery.py`"


@pytest.mark.parametrize("name", NAMES)
def test_the_code_is_short(name: str) -> None:
    lines = [line for line in code(name).splitlines() if line.strip()]
    assert 10 <= len(lines) <= 25


def test_every_picture_is_shown_and_small() -> None:
    shown = re.findall(r"!\[[^]]+\]\(pictures/([\w-]+\.png)\)", page())
    assert sorted(shown) == sorted(f"gallery-{name.replace('_', '-')}.png" for name in NAMES)
    assert sum((PICTURES / picture).stat().st_size for picture in shown) < 500_000


def classifier(found: Mapping[str, Any]) -> None:
    assert found["accuracy"] > 0.98
    evaluations = found["evaluations"]
    assert evaluations.max() > 3 * evaluations.min()


def graph_network(found: Mapping[str, Any]) -> None:
    assert list(found["untouched"].values()) == [32, 3, 0]
    assert list(found["right"].values())[-1] >= 32
    assert found["solution"].status.name == "CONVERGED"


def denoising(found: Mapping[str, Any]) -> None:
    quality = found["quality"]
    assert quality[0] < 8.5
    assert quality[0] + 2 < quality[1] < quality[3] < found["solved"]
    assert found["solved"] > 14.5
    assert abs(quality[20] - found["solved"]) < 0.1


def implicit_representation(found: Mapping[str, Any]) -> None:
    ends = {name: curve[-1][1] for name, curve in found["curves"].items()}
    assert ends["equilibrium"] > ends["applied once"] + 0.5


def language_model(found: Mapping[str, Any]) -> None:
    evaluations = found["evaluations"]
    assert "".join(found["pieces"]) == found["TEXT"]
    assert min(evaluations) < 10 < 18 < max(evaluations)
    assert bool(found["output"].solution.converged.all())


CLAIMS: dict[str, Callable[[Mapping[str, Any]], None]] = {
    "classifier": classifier,
    "denoising": denoising,
    "graph_network": graph_network,
    "implicit_representation": implicit_representation,
    "language_model": language_model,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_program_runs_and_finds_what_the_page_says(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "denoising":
        pytest.importorskip("sklearn")
    monkeypatch.setenv("PICTURES", str(tmp_path))
    monkeypatch.syspath_prepend(PROGRAMS)
    for helper in HELPERS:  # each program imports them anew
        monkeypatch.delitem(sys.modules, helper, raising=False)
    with torch.random.fork_rng(), matplotlib.rc_context():
        found = runpy.run_path(str(PROGRAMS / f"{name}.py"))
    CLAIMS[name](found)
    assert [file.name for file in tmp_path.iterdir()] == [f"gallery-{name.replace('_', '-')}.png"]


if __name__ == "__main__":
    PAGE.write_text(updated(page()), encoding="utf-8")
