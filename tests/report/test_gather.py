"""A run folder is read as far as it goes."""

from pathlib import Path

import pytest

from equilibria.errors import UserError
from equilibria.report.gather import baseline_perplexities, gather, number
from equilibria.runs.index import CheckpointIndex, write_index


def test_an_absent_or_foreign_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no run folder"):
        gather(tmp_path / "absent")
    with pytest.raises(UserError, match="is a folder without a run"):
        gather(tmp_path)
    with pytest.raises(UserError, match=r"demo is a model of the package.*equilibria models demo"):
        gather(Path("demo"))


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "loss": 2.0}\n')
    run = gather(tmp_path)
    assert len(run.lines("train")) == 1
    missing = "\n".join(run.missing)
    for name in ("config.toml", "'valid' line", "evaluation.json", "sample.json"):
        assert name in missing
    assert "equilibria eval" in missing


@pytest.mark.parametrize("damage", ['{"perplexity": 1', "[1]", "\xff"])
def test_a_damaged_file_is_named_and_the_rest_is_read(tmp_path: Path, damage: str) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\nnonsense\n')
    (tmp_path / "evaluation.json").write_bytes(damage.encode("latin-1"))
    (tmp_path / "sample.json").write_text('{"text": "fine"}')
    run = gather(tmp_path)
    assert run.evaluation is None
    assert run.metrics == ()
    assert run.sample == {"text": "fine"}
    assert any("evaluation.json" in sentence for sentence in run.missing)
    assert any("line 2" in sentence for sentence in run.missing)


def test_numbers_are_finite_numbers() -> None:
    figures = {"a": 1, "b": float("inf"), "c": True, "d": "1"}
    assert [number(figures, name) for name in "abcde"] == [1.0, None, None, None, None]
    assert number(None, "a") is None


def test_perplexities_of_n_gram_models_come_with_the_evaluation(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "evaluation.json").write_text('{"unigram_perplexity": 700, "trigram_perplexity": 200}')
    assert baseline_perplexities(gather(tmp_path).evaluation) == {"unigram": 700.0, "trigram": 200.0}


def write_validations(folder: Path) -> None:
    """Losses at three steps; the second is the least."""
    lines = (f'{{"kind": "valid", "step": {step}, "loss": {loss}}}' for step, loss in ((1, 3), (2, 1), (3, 2)))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def test_without_checkpoints_the_best_validation_is_the_one_with_the_least_loss(tmp_path: Path) -> None:
    write_validations(tmp_path)
    best = gather(tmp_path).best_validation()
    assert best is not None
    assert best["step"] == 2


@pytest.mark.parametrize(
    ("index", "step"),
    [
        (CheckpointIndex("step-3", "step-3"), 3),  # after a warm-up, say, that ended at step 2
        (CheckpointIndex("step-1"), 1),
        (CheckpointIndex("step-4", "step-4"), None),
    ],
)
def test_the_best_validation_is_that_of_the_best_checkpoint(
    tmp_path: Path, index: CheckpointIndex, step: int | None
) -> None:
    write_validations(tmp_path)
    write_index(tmp_path / "checkpoints" / "index.json", index)
    best = gather(tmp_path).best_validation()
    assert (None if best is None else best["step"]) == step


def test_checkpoints_that_are_lost_are_named_once(tmp_path: Path) -> None:
    write_validations(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "index.json").write_text("[]")
    run = gather(tmp_path)
    assert run.attempt(run.folder.index) is None
    assert sum("no checkpoint in" in sentence for sentence in run.missing) == 1
