"""What the pages in docs/ show, tried out."""

import re
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from equilibria.configuration import Recipe, TrainingRecipe, recipe_from, write_recipe
from equilibria.configuration.kinds import Family, options, section_of
from equilibria.depths import Equilibrium
from equilibria.runs.folder import RunFolder
from equilibria.runs.metrics import read_metrics
from equilibria.sweep.grid import read_grid
from tiny import tiny_recipe

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page in a language."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def test_the_tracker_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the service's package."""
    logged: list[tuple[int, dict[str, float]]] = []
    finished: list[str] = []
    run = SimpleNamespace(
        log=lambda figures, step: logged.append((step, figures)), finish=lambda: finished.append("finished")
    )
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda project: run))
    trained = tiny_recipe(tmp_path)
    write_recipe(trained, tmp_path / "tiny.toml")
    (program,) = blocks("training-options.md", "python")
    exec(program.replace("recipes/demo.toml", str(tmp_path / "tiny.toml")), {})
    lines = read_metrics(RunFolder(trained.run.folder).metrics)
    assert [step for step, _ in logged] == [line["step"] for line in lines]
    assert [figures["valid/loss"] for _, figures in logged if "valid/loss" in figures] == [
        line["loss"] for line in lines if line["kind"] == "valid"
    ]
    assert finished == ["finished"]


def test_the_tables_have_every_kind() -> None:
    page = (DOCS / "training-options.md").read_text(encoding="utf-8")
    named = set(re.findall(r'^\| `"(\w+)"` \|', page, re.MULTILINE))
    assert named == {kind for part in ("optimizer", "schedule", "averaging") for kind in kinds(part)}


def kinds(part: str) -> dict[str, type]:
    """Those of a part of `[training]`."""
    family = section_of(options(TrainingRecipe)[part].annotation)
    assert isinstance(family, Family)
    return family.kinds()


def recipe(tables: str) -> Recipe:
    return recipe_from({"run": {"name": "shown"}, **tomllib.loads(tables)}, "page")


SECTIONS = [(page.name, block) for page in sorted(DOCS.glob("*.md")) for block in blocks(page.name, "toml")]


@pytest.mark.parametrize(
    ("page", "tables"),
    [(page, tables) for page, tables in SECTIONS if not page.startswith("adding-")],
    ids=lambda value: value if value.endswith(".md") else "",
)
def test_the_sections_of_the_pages_are_those_of_recipes(page: str, tables: str) -> None:
    assert recipe(tables)


def test_a_solver_of_ones_own_in_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's solver, in a file of the working directory."""
    program, *_ = blocks("adding-a-solver.md", "python")
    (tmp_path / "aitken.py").write_text(program)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tables,) = blocks("adding-a-solver.md", "toml")
    depth = getattr(recipe(tables).model, "depth", None)
    assert isinstance(depth, Equilibrium)
    assert {"tol": 1e-2, "scope": "prefix", "largest": 1.5}.items() <= vars(depth.solver).items()


def test_a_gradient_of_ones_own_in_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, *_ = blocks("adding-a-gradient.md", "python")
    (tmp_path / "neumann.py").write_text(program)
    monkeypatch.syspath_prepend(tmp_path)
    depth = getattr(recipe('[model.depth.gradient]\nmethod = "neumann:DampedNeumann"\nterms = 3').model, "depth", None)
    assert isinstance(depth, Equilibrium)
    assert vars(depth.gradient) == {"terms": 3, "damping": 0.5}


def swept(command: str) -> int:
    """How many runs a command of the page has, its variables filled in."""
    words = re.sub(r'"\$\w+"', "4", command.replace("\\\n", " ")).split()
    _, file, *flags = words[words.index("sweep") :]
    own = flags.index("--index")
    return len(read_grid([*flags[:own], *flags[own + 2 :]]).recipes(ROOT / file))


def test_the_slurm_array_has_the_sweeps_indices() -> None:
    (script,) = blocks("sweeps.md", "bash")
    first, last = re.findall(r"--array=(\d+)-(\d+)", script)[0]
    assert (int(first), int(last)) == (0, swept(script[script.index("srun") :]) - 1)


def test_the_kubernetes_job_has_the_sweeps_indices() -> None:
    job = yaml.safe_load(blocks("sweeps.md", "yaml")[0])
    assert (job["apiVersion"], job["kind"], job["spec"]["completionMode"]) == ("batch/v1", "Job", "Indexed")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert job["spec"]["completions"] == swept(container["args"][0])
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"
