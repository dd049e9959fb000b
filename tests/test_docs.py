"""What the pages in docs/ show, tried out."""

import json
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

import equilibria as eq
from equilibria import cells
from equilibria.cli.app import main
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
    exec(program.replace("demo", str(tmp_path / "tiny.toml")), {})
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


def test_the_table_of_tasks_has_every_task() -> None:
    named = re.findall(r'^\| `"(\w+)"` \|', (DOCS / "tasks.md").read_text(encoding="utf-8"), re.MULTILINE)
    family = section_of(options(Recipe)["data"].annotation)
    assert isinstance(family, Family)
    tasks = {kind: cls for kind, cls in family.kinds().items() if issubclass(cls, eq.Task)}
    assert sorted(named) == sorted(tasks)
    assert {kind for kind, cls in tasks.items() if cls.causal} == {*named[:4]}


def kinds(part: str) -> dict[str, type]:
    """Those of a part of `[training]`."""
    family = section_of(options(TrainingRecipe)[part].annotation)
    assert isinstance(family, Family)
    return family.kinds()


def recipe(tables: str) -> Recipe:
    return recipe_from({"run": {"name": "shown"}, **tomllib.loads(tables)}, "page")


SECTIONS = [(page.name, block) for page in sorted(DOCS.glob("*.md")) for block in blocks(page.name, "toml")]


@pytest.mark.filterwarnings("ignore:.*when a token stops depends on later ones")
@pytest.mark.parametrize(
    ("page", "tables"),
    [(page, tables) for page, tables in SECTIONS if not page.startswith(("adding-", "extending"))],
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


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, with the files that docs/extending.md says to save there."""
    for name, language in (("mine.py", "python"), ("mine.toml", "toml")):
        (tmp_path / name).write_text(blocks("extending.md", language)[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("mine", None)


@pytest.mark.filterwarnings("ignore:ignoring model.depth")  # of another depth
def test_parts_of_ones_own_train_evaluate_resume_export_and_load(own: Path) -> None:
    (commands,) = blocks("extending.md", "bash")
    for line in commands.splitlines():
        program, *arguments = shlex.split(line, comments=True)
        assert (program, main(arguments)) == ("equilibria", 0), line
    assert json.loads((own / "runs/mine/evaluation.json").read_text())["loss"] < 0.02
    tokens = torch.tensor([[0, 1, 1, 0, 1, 0]])
    model = eq.load("runs/mine")
    exported = torch.export.load("mine.pt2").module()(tokens)
    torch.testing.assert_close(exported, model(tokens).logits, atol=0.05, rtol=0.05)
    assert exported.argmax(-1).tolist() == (tokens.cumsum(1) % 2).tolist()
    assert eq.audit_causality(model, tokens).leak == 0.0


def test_parts_of_ones_own_from_python(own: Path) -> None:
    recipe = own / "mine.toml"
    recipe.write_text(recipe.read_text().replace("steps = 300", "steps = 4"))
    program = blocks("extending.md", "python")[1]
    found: dict[str, Any] = {}
    exec(program, found)
    assert found["result"].step == 4
    assert type(found["model"].cell).__name__ == "ElmanCell"


def swept(command: str) -> int:
    """How many runs a command of the page has, its variables filled in."""
    words = re.sub(r'"\$\w+"', "4", command.replace("\\\n", " ")).split()
    _, file, *flags = words[words.index("sweep") :]
    own = flags.index("--index")
    return len(read_grid([*flags[:own], *flags[own + 2 :]]).recipes(Path(file)))


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


def test_the_ways_through_the_code_name_what_there_is() -> None:
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+)\.py:([\w.]+)`", page)
    assert len(named) > 20
    for module, name in named:
        found = attrgetter(name)(import_module(f"equilibria.{module.replace('/', '.')}"))
        assert callable(found), name


def test_the_changelog_names_what_there_is() -> None:
    """Attributes of classes, and names in packages that are no sections of a recipe."""
    page = (DOCS.parent / "CHANGELOG.md").read_text(encoding="utf-8")
    named = re.findall(r"`([A-Z]\w+\.\w+|(?:cells|depths|inference|models|solvers)(?:\.\w+)+)`", page)
    assert len(named) > 10
    for name in named:
        if name[0].islower():
            assert resolve_name(f"equilibria.{name}"), name
        else:
            kind, part = name.split(".")
            found = getattr(eq, kind, None) or getattr(cells, kind)
            assert part in {*dir(found), *getattr(found, "__dataclass_fields__", ())}, name
