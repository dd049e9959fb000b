"""What a run's folder says of it."""

import json
from pathlib import Path

from equilibria.runs.folder import RunFolder
from equilibria.runs.index import CheckpointIndex, write_index
from equilibria.sweep.runs import sweep_run
from tiny import tiny_recipe


def test_the_best_loss_is_that_of_the_best_checkpoint(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    folder = RunFolder(recipe.run.folder)
    assert sweep_run(recipe).best_loss is None
    folder.checkpoints.mkdir(parents=True)
    # at the depth of a warm-up of 2 steps a loss may be less than any after it
    lines = [{"kind": "valid", "step": step, "loss": loss} for step, loss in ((2, 1.0), (4, 2.5), (6, 3.0))]
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_index(folder.index_file, CheckpointIndex("step-6", "step-4"))
    found = sweep_run(recipe)
    assert (found.best_loss, found.step, found.figures["loss"]) == (2.5, 6, 3.0)


def test_a_damaged_run_says_what_is_damaged(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    folder = RunFolder(recipe.run.folder)
    folder.checkpoints.mkdir(parents=True)
    for file, content, message in (
        (folder.metrics, "nonsense\n", f"{folder.metrics}, line 1 is damaged"),
        (folder.index_file, '{"last": "step-6"}', f"no checkpoint in {folder.checkpoints} is what was saved"),
        (folder.config, "[run", f"{folder.config}: cannot be read as TOML"),
    ):
        file.write_text(content)
        found = sweep_run(recipe)
        assert (found.state, found.open) == ("damaged", False)
        assert found.message.startswith(message)
        file.unlink()
