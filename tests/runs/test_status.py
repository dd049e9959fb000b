"""How far a run has come."""

import json
from pathlib import Path

import pytest

from equilibria.errors import UserError
from equilibria.runs.folder import RunFolder
from equilibria.runs.index import CheckpointIndex, write_index
from equilibria.runs.status import RunStatus


@pytest.mark.parametrize("line", [{}, {"loss": "2.5"}, {"loss": [2.5]}])
def test_a_best_loss_that_is_no_number_is_named(line: dict[str, object], tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.checkpoints.mkdir()
    write_index(folder.index_file, CheckpointIndex("step-6", "step-4"))
    folder.metrics.write_text(json.dumps({"kind": "valid", "step": 4, **line}) + "\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl is damaged: the loss of step 4 is no number"):
        _ = RunStatus(folder).best_loss
