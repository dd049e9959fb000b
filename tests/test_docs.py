"""What the pages in docs/ show, tried out."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from equilibria.configuration import write_recipe
from equilibria.configuration.training import OPTIMIZER_OPTIONS, SCHEDULE_OPTIONS
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
    recipe = tiny_recipe(tmp_path)
    write_recipe(recipe, tmp_path / "tiny.toml")
    (program,) = blocks("training-options.md", "python")
    exec(program.replace("recipes/demo.toml", str(tmp_path / "tiny.toml")), {})
    lines = read_metrics(RunFolder(recipe.run.folder).metrics)
    assert [step for step, _ in logged] == [line["step"] for line in lines]
    assert [figures["valid/loss"] for _, figures in logged if "valid/loss" in figures] == [
        line["loss"] for line in lines if line["kind"] == "valid"
    ]
    assert finished == ["finished"]


def test_the_tables_have_every_kind() -> None:
    page = (DOCS / "training-options.md").read_text(encoding="utf-8")
    assert set(re.findall(r'^\| `"(\w+)"` \|', page, re.MULTILINE)) == {*OPTIMIZER_OPTIONS, *SCHEDULE_OPTIONS}


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
