"""All runs below a folder."""

import json
from pathlib import Path

import pytest

from equilibria.configuration import write_recipe
from equilibria.errors import UserError
from equilibria.runs.folder import RunFolder
from equilibria.runs.index import CheckpointIndex, write_index
from equilibria.runs.lock import writing
from equilibria.sweep.listing import ListedRun, list_runs
from tiny import tiny_recipe


def made(base: Path, name: str, step: int | None = None) -> RunFolder:
    """A run of 12 steps, of which some are taken: its recipe, its last validation and its index alone."""
    recipe = tiny_recipe(base)
    folder = RunFolder(base / name)
    folder.checkpoints.mkdir(parents=True)
    write_recipe(recipe, folder.config, sealed=True)
    if step is not None:
        folder.metrics.write_text(json.dumps({"kind": "valid", "step": step, "loss": 2.5}) + "\n")
        write_index(folder.index_file, CheckpointIndex(f"step-{step}"))
    return folder


def by_name(folder: Path) -> dict[str, ListedRun]:
    return {str(run.folder.relative_to(folder)): run for run in list_runs(folder)}


def test_each_run_has_its_state_wherever_it_is(tmp_path: Path) -> None:
    made(tmp_path, "begun", None)
    made(tmp_path, "half", 6)
    made(tmp_path, "sweep/seed=0", 12)
    made(tmp_path, "gpt2", 0).checkpoints.joinpath("step-0").mkdir()
    (tmp_path / "sweep" / "empty").mkdir()
    (tmp_path / "latest").symlink_to(tmp_path / "half")
    (tmp_path / "round").symlink_to(tmp_path)
    with writing(made(tmp_path, "busy", 6)):
        found = by_name(tmp_path)
    states = {name: (run.state, run.step, run.steps, run.loss, run.resumable) for name, run in found.items()}
    assert states == {
        "begun": ("unfinished", 0, 12, None, True),
        "busy": ("running", 6, 12, 2.5, False),
        "half": ("unfinished", 6, 12, 2.5, True),
        "latest": ("unfinished", 6, 12, 2.5, True),
        "gpt2": ("imported", 0, 12, 2.5, False),
        "sweep/seed=0": ("finished", 12, 12, 2.5, False),
    }
    assert "is training it" in found["busy"].message
    assert all(run.size > 1000 and run.changed > 1e9 for run in found.values())


def test_the_folder_may_be_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path, "half", 6)
    assert [run.step for run in list_runs(tmp_path / "half")] == [6]
    monkeypatch.chdir(tmp_path / "half")
    assert [run.step for run in list_runs(Path())] == [6]


def test_damage_is_a_row_and_a_lost_index_a_word(tmp_path: Path) -> None:
    made(tmp_path, "edited", 6).config.write_text("# sha256 0\n[run]\n")
    made(tmp_path, "lost", 6).config.unlink()
    made(tmp_path, "line", 6).metrics.write_text("nonsense\n")
    found = by_name(tmp_path)
    assert {run.state for run in found.values()} == {"damaged"}
    assert found["lost"].message == f"{tmp_path / 'lost' / 'config.toml'} is missing; restore it"
    assert "metrics.jsonl, line 1 is damaged" in found["line"].message
    assert not any(run.resumable or "\n" in run.message for run in found.values())


def test_a_folder_that_cannot_be_listed_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name, what in (("absent", "does not exist"), ("file", "is a file")):
        with pytest.raises(UserError, match=f"{name} {what}; expected a folder of runs"):
            list_runs(tmp_path / name)


def test_the_last_loss_of_a_run_that_diverged_is_unknown(tmp_path: Path) -> None:
    folder = made(tmp_path, "wild", 6)
    folder.metrics.write_text(json.dumps({"kind": "valid", "step": 6, "loss": None}) + "\n")
    assert [run.loss for run in list_runs(tmp_path)] == [None]


def test_a_recipe_alone_is_no_run(tmp_path: Path) -> None:
    write_recipe(tiny_recipe(tmp_path), tmp_path / "recipes" / "config.toml")
    assert list_runs(tmp_path) == []
