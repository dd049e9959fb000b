"""The wheel alone, with the packages that it demands and no others, in an empty folder."""

import json
import os
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from equilibria.configuration import shipped_recipes
from equilibria.inference.trained import trained_models
from processes import ROOT

pytestmark = pytest.mark.slow


def demanded(by: metadata.Distribution, found: dict[str, metadata.Distribution]) -> dict[str, metadata.Distribution]:
    """The packages that one demands without extras, and what those demand."""
    for line in by.requires or ():
        needed = Requirement(line)
        if needed.name in found or (needed.marker and not needed.marker.evaluate({"extra": ""})):
            continue
        found[needed.name] = metadata.distribution(needed.name)
        demanded(found[needed.name], found)
    return found


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command `equilibria` of an environment into which the wheel was installed."""
    base = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", str(ROOT), "--no-deps", "--no-build-isolation", "--wheel-dir", str(base)]
    subprocess.run([*pip, *build], check=True, timeout=120)
    (wheel,) = base.glob("*.whl")
    fresh = base / "fresh"
    venv.create(fresh, symlinks=True)
    (packages,) = fresh.glob("lib/python*/site-packages")
    (built,) = metadata.distributions(path=[str(wheel)])
    for distribution in demanded(built, {}).values():  # linked: their installation takes minutes
        for top in {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (packages / top).exists():
                (packages / top).symlink_to(Path(str(distribution.locate_file(top))))
    python = str(fresh / "bin" / "python")
    subprocess.run(
        [*pip, "--python", python, "install", "--no-deps", "--no-index", str(wheel)], check=True, timeout=120
    )
    return fresh / "bin" / "equilibria"


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("empty")


def ran(command: Path, folder: Path, *arguments: str) -> str:
    """What a command prints, without this checkout in sight."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    ended = subprocess.run(
        [command, *arguments],
        cwd=folder,
        env={**kept, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


SMALL = [
    *("--training.steps", "6", "--training.evaluate_every", "3", "--training.segment_length", "16"),
    *("--model.cell.d_model", "16", "--model.cell.inner", "24", "--model.coda_inner", "24"),
    *("--model.depth.eval_solver.max_evaluations", "4", "--model.depth.eval_solver.tol", "0.5"),
    *("--data.tokenizer.vocabulary_size", "300", "--training.evaluate_tokens", "300"),
]


def test_the_main_job(installed: Path, empty: Path) -> None:
    assert json.loads(ran(installed, empty, "recipes", "--json")).keys() == shipped_recipes().keys()
    figures = json.loads(ran(installed, empty, "demo", *SMALL, "--json"))
    assert 1 < figures["perplexity"] < 1000
    run = str(figures["run"])
    assert (empty / run / "report.html").is_file()
    assert ran(installed, empty, "generate", run, "--prompt", "The", "--max-new-tokens", "5").startswith("The")
    ran(installed, empty, "report", run)


def test_a_model_of_the_package_writes_at_once(installed: Path, empty: Path) -> None:
    assert json.loads(ran(installed, empty, "models", "--json")).keys() == trained_models().keys()
    assert ran(installed, empty, "generate", "demo", "--prompt", "The", "--max-new-tokens", "5").startswith("The")


def test_a_recipe_of_ones_own(installed: Path, empty: Path) -> None:
    (empty / "text").mkdir()
    for split in ("train", "valid"):
        (empty / "text" / f"{split}.txt").write_text("some words of one's own\n" * 400)
    ran(installed, empty, "init", "english-4m/default", "mine.toml")
    flags = ["--data.path", "text", *SMALL]
    assert "parameters" in ran(installed, empty, "train", "mine.toml", *flags, "--dry-run")
    ran(installed, empty, "train", "mine.toml", *flags, "--run.name", "mine")
    assert "perplexity" in ran(installed, empty, "eval", "runs/mine")


def test_tables_and_benchmarks(installed: Path, empty: Path) -> None:
    assert "LSTM" in ran(installed, empty, "reproduce", "copy-memory")
    with pytest.raises(AssertionError, match="run this in a checkout of the sources"):
        ran(installed, empty, "bench", "twin")
