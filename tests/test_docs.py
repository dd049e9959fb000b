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
from equilibria.cli.app import app, main
from equilibria.configuration import Recipe, TrainingRecipe, recipe_from, write_recipe
from equilibria.configuration.kinds import Family, options, section_of
from equilibria.depths import Equilibrium
from equilibria.runs.folder import RunFolder
from equilibria.runs.metrics import read_metrics
from equilibria.sweep.grid import read_grid
from processes import free_port
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
    assert vars(depth.gradient) == {"terms": 3, "damping": 0.5, "checkpoint": False}


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


def programs(page: str) -> list[tuple[str, str | None]]:
    """The Python blocks of a page, each with the text block right behind it, which is what it prints."""
    text = (DOCS / page).read_text(encoding="utf-8")
    found = re.finditer(r"^```python\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", text, re.DOTALL | re.MULTILINE)
    return [(match.group(1), match.group(2)) for match in found]


WHOLE = ["getting-started.md", "concepts.md", "networks.md", "debugging.md", "coming-from.md", "compared.md"]


@pytest.mark.filterwarnings("ignore::equilibria.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore::UserWarning:torch")
def test_the_programs_with_the_rest_of_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a group of one process; with a compiler that is quick."""
    place = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    for name, value in place.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr("torch._functorch.config.donated_buffer", True)
    names: dict[str, Any] = {}
    for program, _ in programs("pytorch.md"):
        exec(
            compile(program.replace("compile(cell)", "compile(cell, backend='aot_eager')"), "pytorch.md", "exec"), names
        )
    assert names["cell"].linear.weight.grad is not None
    assert names["replicated"].module.deq.cell.linear.weight.grad is not None
    assert names["logits"].isfinite().all()


@pytest.mark.parametrize("page", WHOLE)
def test_the_programs_of_a_page_run_one_after_the_other(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.txt").write_text((DOCS / "lab-notes.md").read_text(encoding="utf-8"), encoding="utf-8")
    names: dict[str, Any] = {}
    for program, printed in programs(page):
        capsys.readouterr()
        exec(compile(program, page, "exec"), names)
        if printed is not None:
            assert capsys.readouterr().out == printed, program


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs, and what was exported from one of them, under the names that the pages use."""
    folder = tmp_path_factory.mktemp("trained")
    tiny = tiny_recipe(folder, name="deq-lm")
    eq.train(tiny)
    run = str(tiny.run.folder)
    assert main(["export", run, str(folder / "model.pt2"), "--to", "torch"]) == 0
    assert main(["export", run, str(folder / "exported"), "--to", "hf"]) == 0
    short = ["--run.directory", str(folder / "runs"), "--run.name", "parity-trellisnet", "--training.steps", "2"]
    eq.train(eq.read_recipe("state-tracking/parity-trellisnet", short))
    return folder


# What stands before the fragments of a page; a long word is made short.
FRAGMENTS = {
    "adding-a-gradient.md": "import torch, equilibria as eq\nf, z0 = torch.cos, torch.ones(2, 3)",
    "adding-a-solver.md": "import torch, equilibria as eq\nf, z0 = lambda z: 0.5 * torch.cos(z), torch.ones(2, 4, 3)",
    "how-to-choose.md": "import torch, equilibria as eq\n"
    "class Cell(torch.nn.Module):\n"
    "    def forward(self, z, x, mask=None):\n"
    "        return 0.5 * z + x * mask\n"
    "cell, z0, x, mask = Cell(), torch.zeros(2, 3), torch.ones(2, 3), torch.ones(3)",
    "hugging-face.md": "",
    "inference.md": "import torch, equilibria, equilibria as eq\n"
    "model, solver = eq.load('runs/deq-lm'), eq.Picard(scope='prefix', max_evaluations=100)\n"
    "tokens_BL, token_B = torch.randint(200, (2, 48)), torch.randint(200, (2,))",
    "interop.md": "import torch, equilibria\ntokens = targets = torch.randint(200, (2, 20))",
}


@pytest.mark.filterwarnings("ignore::equilibria.ConvergenceWarning")  # the runs are hardly trained
@pytest.mark.parametrize("page", FRAGMENTS)
def test_the_fragments_of_a_page_run(page: str, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(FRAGMENTS[page], names)
    for program, _ in programs(page):
        exec(compile(program.replace("10_000", "20"), page, "exec"), names)


def test_every_program_of_the_pages_is_run() -> None:
    """Those of serving.md by tests/cli/test_serve.py."""
    elsewhere = {"pytorch.md", "extending.md", "training-options.md", "serving.md", "gallery.md"}
    shown = {page.name for page in DOCS.glob("*.md") if programs(page.name)}
    assert shown <= {*WHOLE, *FRAGMENTS, *elsewhere}


COMMANDS = [
    (page.name, line)
    for page in sorted(DOCS.glob("*.md"))
    for block in re.findall(
        r"^```(?:bash|text)?\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("equilibria ")
]


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=lambda value: value if value.endswith(".md") else "")
def test_the_commands_of_the_pages_can_be_given(page: str, line: str) -> None:
    """Their words and flags, and the keys of recipes where a recipe is named."""
    _, *words = shlex.split(line, comments=True)
    app.parse_args(words, print_error=False, exit_on_error=False)
    if words[0] in ("train", "plan") and words[1] in eq.shipped_recipes():
        flags = [word for word in words[2:] if word not in ("--resume", "--dry-run", "--json")]
        assert eq.read_recipe(words[1], flags)
