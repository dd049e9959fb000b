"""The notebooks of examples/ are those of their scripts, are small, and say what they show."""

import json
import re
import sys
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
MOST = 300_000
"""Bytes of a notebook."""


def load(folder: Path, name: str) -> ModuleType:
    """A module of a folder that is no package."""
    sys.path.insert(0, str(folder))
    try:
        return __import__(name)
    finally:
        sys.path.remove(str(folder))


notebooks = load(EXAMPLES, "notebooks")
NAMES = notebooks.NAMES


def script(name: str) -> str:
    return (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")


def test_every_script_and_notebook_is_listed() -> None:
    assert {file.stem for file in EXAMPLES.glob("*.ipynb")} == set(NAMES)
    assert {file.stem for file in EXAMPLES.glob("*.py")} == {*NAMES, "notebooks"}


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_that_of_its_script_executed_and_small(name: str) -> None:
    again = f"run `python examples/notebooks.py {name}`"
    file, cells = EXAMPLES / f"{name}.ipynb", notebooks.cells(script(name))
    content, ran = notebooks.kept(file)
    found = [(cell["cell_type"], "".join(cell["source"])) for cell in content["cells"]]
    assert found == [(cell.kind, cell.source) for cell in cells], again
    assert content["metadata"]["equilibria"]["code"] == notebooks.fingerprint(cells), again
    assert content == notebooks.notebook(cells, ran), again
    assert file.stat().st_size < MOST
    assert sum(len(one.pictures) for one in ran) >= 1
    assert all(title for one in ran for title, _ in one.pictures)


@pytest.mark.parametrize("name", NAMES)
def test_the_links_of_a_notebook_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", script(name)):
        path, _, anchor = target.partition("#")
        page = EXAMPLES / path
        assert page.exists(), target
        headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert not anchor or anchor in {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_becomes_a_page(name: str) -> None:
    text, pictures = notebooks.page_of(EXAMPLES / f"{name}.ipynb")
    assert pictures
    assert re.findall(r"!\[[^]]+\]\(([^)]+)\)", text) == list(pictures)
    assert text.count("```python") == sum(cell.kind == "code" for cell in notebooks.cells(script(name)))


def test_cells_are_executed_in_turn_and_what_they_show_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notebooks, "HERE", tmp_path)
    source = tmp_path / "one.py"
    source.write_text(
        '"""Not part of it."""\n\n# %% [markdown]\n# # Title\n#\n# [elsewhere](../there.md)\n\n'
        "# %%\nimport matplotlib.pyplot as plt\nimport torch\n\n"
        "torch.set_default_dtype(torch.float64)\nprint(6 * 7)\n\n"
        '# %%\nfigure, axes = plt.subplots()\naxes.set_title("Nothing")\n"a value"\n'
    )
    file = notebooks.write("one")
    assert torch.get_default_dtype() is torch.float32
    content, ran = notebooks.kept(file)
    assert [cell["cell_type"] for cell in content["cells"]] == ["markdown", "code", "code"]
    assert [one.printed for one in ran] == ["42\n", "'a value'\n"]
    ((title, picture),) = ran[1].pictures
    assert title == "Nothing"
    assert picture.startswith(b"\x89PNG")
    assert json.loads(file.read_text())["nbformat"] == 4

    def never(*_: object) -> None:
        raise AssertionError("executed again")

    monkeypatch.setattr(notebooks, "execute", never)
    source.write_text(source.read_text().replace("# # Title", "# # Another"))
    changed, kept = notebooks.kept(notebooks.write("one"))
    assert "".join(changed["cells"][0]["source"]).startswith("# Another")
    assert kept == ran
    source.write_text(source.read_text().replace("6 * 7", "7 * 7"))
    with pytest.raises(AssertionError, match="executed again"):
        notebooks.write("one")
    page, pictures = notebooks.page_of(file)
    assert "[elsewhere](../there.md)" in page
    assert list(pictures) == ["one-1.png"]
    assert "```text\n42\n```" in page


def test_a_warning_in_a_cell_is_an_error() -> None:
    cells = notebooks.cells('# %%\nimport warnings\n\nwarnings.warn("look")\n')
    with pytest.raises(UserWarning, match="look"):
        list(notebooks.execute(cells, {}))


def mlp(found: Mapping[str, Any]) -> None:
    assert min(found["accuracies"].values()) > 0.92
    assert max(found["accuracies"].values()) - min(found["accuracies"].values()) < 0.03  # "by a handful of images"
    saved, applied = found["saved"], found["applied"]
    assert saved["equilibrium"] == saved["once"] < saved["8 times"] / 4
    assert applied["once"][39] < 0.7
    assert max(applied["8 times"]) - applied["8 times"][7] < 0.01
    assert applied["equilibrium"][0] < applied["equilibrium"][15] - 0.01
    assert abs(applied["equilibrium"][39] - applied["equilibrium"][15]) < 0.01
    solved = found["found"]
    evaluations = {name: float(one.group_evaluations.float().mean()) for name, one in solved.items()}
    assert 1.5 * max(evaluations["Anderson"], evaluations["Broyden"]) < evaluations["Picard"]
    needed = np.corrcoef(found["radius"], solved["Picard"].group_evaluations)[0, 1]
    assert needed > 0.5  # "the nearer to 1, the more"
    free, bounded = (np.array(found["logs"][name]).T for name in ("equilibrium", "bounded"))
    assert bounded[0].max() < 0.9 < free[0].max()
    assert bounded[1].sum() == 0 < free[1].sum()
    table = found["table"]
    assert {row["bounded"] for row in table.values()} == {0}
    assert min(row["x 2"] for row in table.values()) == table["Broyden()"]["x 2"] < table["Anderson()"]["x 2"]


def gradients(found: Mapping[str, Any]) -> None:
    assert found["agreement"] < 1e-8
    stepped, steps = found["stepped"], found["steps"]
    assert np.allclose(stepped["Neumann"][:5], stepped["Phantom"][:5], rtol=1e-3)
    middle = slice(3, 7)
    assert all(np.less(stepped["Phantom"][middle], stepped["Unrolled"][middle]))
    assert all(np.less(stepped["Unrolled"][middle], stepped["Reversible"][middle]))
    for errors in (found["forward"], found["adjoint"]):  # "as exact as its two tolerances"
        assert all(error < 3 * tolerance for error, tolerance in zip(errors[:8], found["tolerances"], strict=False))
    stopped = found["stopped"]
    assert min(stopped["Implicit"]) > 1e-2
    for name in ("Unrolled", "Reversible"):
        assert stopped[name][0] > 1e-2
        assert stopped[name][1] < 1e-8
    memory = found["memory"]
    one = memory["Implicit"][0]
    assert set(memory["Neumann"]) == {one}
    for name in ("Phantom", "Unrolled"):
        assert np.allclose(memory[name], [one * count for count in found["counts"]], rtol=0.01)
    assert np.allclose(memory["Unrolled, checkpoint=True"], [one * count / 2 for count in found["counts"]], rtol=0.01)
    assert max(memory["Reversible"]) < 1.1 * min(memory["Reversible"])
    for name in ("JacobianFree()", "Phantom(5)", "Phantom(20)"):
        assert found["curves"][name] == sorted(found["curves"][name])
    assert max(found["curves"]["Implicit()"]) < 1e-4
    assert found["judged"]["W"].cosine > 0.9
    assert len(steps) == 8


def state_tracker(found: Mapping[str, Any]) -> None:
    right = found["right"]
    for one in right.values():
        assert one[:, :16].mean() > 0.99
    solved, *others = right.values()
    assert solved.mean() > 0.999  # "right throughout"
    assert solved.all(1).sum() >= 14
    for one in others:
        assert one[:, 32:].mean() < 0.25  # "at chance"
    assert found["evaluations"].mean() < 12
    grown = list(found["grown"].values())
    assert all(1.5 * a < b for a, b in pairwise(grown))


CLAIMS: dict[str, Callable[[Mapping[str, Any]], None]] = {
    "mlp-as-equilibrium": mlp,
    "what-the-gradient-does": gradients,
    "a-state-tracker": state_tracker,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_executes_and_finds_what_it_says(name: str) -> None:
    if "sklearn" in script(name):
        pytest.importorskip("sklearn")
    found: dict[str, Any] = {}
    ran = list(notebooks.execute(notebooks.cells(script(name)), found))
    CLAIMS[name](found)
    _, kept = notebooks.kept(EXAMPLES / f"{name}.ipynb")
    assert [len(one.pictures) for one in ran] == [len(one.pictures) for one in kept]
