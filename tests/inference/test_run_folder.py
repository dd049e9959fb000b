"""What the names in a run's index of checkpoints say."""

from pathlib import Path

import pytest

from equilibria.inference.run_folder import RunFolder


@pytest.mark.parametrize(
    ("index", "step"),
    [
        (None, None),
        ('{"last": "step-8", "best": "step-4"}', 4),
        ('{"last": "step-8"}', 8),
        ('{"last": "step-8", "best": "by hand"}', None),
    ],
)
def test_the_best_step_is_that_of_the_checkpoint_that_is_loaded_as_the_best(
    tmp_path: Path, index: str | None, step: int | None
) -> None:
    folder = RunFolder(tmp_path)
    if index is not None:
        folder.checkpoints.mkdir()
        folder.index_file.write_text(index)
    assert folder.best_step() == step
