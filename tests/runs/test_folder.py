"""What the names in a run's index of checkpoints say."""

from pathlib import Path

import pytest

from equilibria.errors import UserError
from equilibria.runs.folder import RunFolder
from equilibria.runs.index import CheckpointIndex, latest_first, read_index, step_of, write_index


@pytest.mark.parametrize(
    ("index", "step"),
    [(None, None), (CheckpointIndex("step-8", "step-4"), 4), (CheckpointIndex("step-8"), 8)],
)
def test_the_best_step_is_that_of_the_checkpoint_that_is_loaded_as_the_best(
    tmp_path: Path, index: CheckpointIndex | None, step: int | None
) -> None:
    folder = RunFolder(tmp_path)
    if index is not None:
        write_index(folder.index_file, index)
    assert folder.best_step() == step


@pytest.mark.parametrize("name", ["../elsewhere", "step-", "step-08", "step--1", "", "step-1/..", "step-٣"])
def test_an_index_names_checkpoints_and_nothing_else(tmp_path: Path, name: str) -> None:
    assert step_of(Path(name)) is None
    for index in (CheckpointIndex(name), CheckpointIndex("step-1", name), CheckpointIndex("step-1", None, (name,))):
        write_index(tmp_path / "index.json", index)
        with pytest.raises(UserError, match="does not name checkpoints"):
            read_index(tmp_path / "index.json")


def test_checkpoints_come_latest_first(tmp_path: Path) -> None:
    for name in ("step-9", "step-10", "step-0", "step-10-good", "step-011", "damaged-step-4"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-7").write_text("a file")
    assert [path.name for path in latest_first(tmp_path)] == ["step-10", "step-9", "step-0"]
