"""The headline is of the best checkpoint, read as the recipe says; other evaluations say what they are of."""

import json
from pathlib import Path

import pytest

from equilibria.report.curves import loss_plots
from equilibria.report.gather import RunRecord, gather
from equilibria.report.headline import Card, cards
from equilibria.runs.index import CheckpointIndex, write_index
from tiny import tiny_recipe, tiny_task_recipe

EVALUATION: dict[str, object] = {
    **{"split": "valid", "checkpoint": "step-6", "step": 6, "segment_length": 16, "memory_length": 8},
    **{"tolerance": None, "max_evaluations": None, "leave": None, "applications": None},
    **{"loss": 2.0, "perplexity": 7.5, "word_perplexity": 99.0, "bits_per_byte": 2.885, "accuracy": None},
    **{"residual": {"mean": 0.0042, "p95": 0.005, "worst": 0.006}, "evaluations_per_solve": 9.5, "unconverged": 0.25},
    **{"unigram_perplexity": 31.25, "trigram_perplexity": 12.5},
}
BEST = {"perplexity": 7.0, "residual": 0.003, "evaluations": 8.0}


def record(folder: Path, evaluation: dict[str, object]) -> RunRecord:
    """A run whose warm-up ended after step 2 with a loss that is less than any after it; the best is step 6."""
    losses = ((2, 1.0, {}), (4, 3.0, {}), (6, 1.9, BEST), (8, 2.5, {}))
    lines = ({"kind": "valid", "step": step, "loss": loss, **more} for step, loss, more in losses)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_index(folder / "checkpoints" / "index.json", CheckpointIndex("step-8", "step-6"))
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return gather(folder)


def shown(run: RunRecord) -> dict[str, Card]:
    return {card.name: card for card in cards(run, None)}


def test_the_recipes_own_evaluation_of_the_best_checkpoint_is_the_headline(tmp_path: Path) -> None:
    run = record(tmp_path, EVALUATION)
    run.recipe = tiny_recipe(tmp_path)
    found = shown(run)
    assert found["Validation perplexity"].value == "7.50"
    assert found["Validation perplexity"].details == [
        *("unigram model 31.25", "trigram model 12.50", "per word 99.00", "2.885 bits per byte")
    ]
    assert found["Residual"].value == "0.0042"
    assert found["Evaluations per solve"].value == "9.5"
    assert len(found) == 5


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"max_evaluations": 1}, "max evaluations 1"),
        ({"tolerance": 0.5}, "tolerance 0.5"),
        ({"leave": "converged"}, "leave converged"),
        ({"applications": 1}, "applications 1"),
        ({"step": 8, "checkpoint": "step-8"}, "of step-8; the best checkpoint is step-6"),
        ({"step": None, "checkpoint": "model.safetensors"}, "of model.safetensors; the best checkpoint is step-6"),
    ],
)
def test_another_effort_or_checkpoint_is_not_the_headline(tmp_path: Path, other: dict[str, object], said: str) -> None:
    found = shown(record(tmp_path, EVALUATION | other))
    assert found["Validation perplexity"].value == "7.00"
    # what the text is by others' measure does not depend on the model
    assert found["Validation perplexity"].details == [
        *("unigram model 31.25", "trigram model 12.50", "evaluation of the best checkpoint during training")
    ]
    assert (found["Residual"].value, found["Evaluations per solve"].value) == ("0.003", "8.0")
    assert found["Last evaluation"].value == "7.50"
    assert list(found["Last evaluation"].details) == [
        *("validation perplexity", said, "per word 99.00", "2.885 bits per byte"),
        *("residual 0.0042", "evaluations per solve 9.5"),
    ]


def test_an_evaluation_that_does_not_say_at_what_effort_is_not_the_headline(tmp_path: Path) -> None:
    old = {name: value for name, value in EVALUATION.items() if name not in ("tolerance", "max_evaluations", "leave")}
    run = record(tmp_path, old)
    found = shown(run)
    assert found["Validation perplexity"].value == "7.00"
    assert "effort is not recorded" in found["Last evaluation"].details[1]
    run.recipe = tiny_task_recipe(tmp_path)
    assert shown(run)["Validation loss"].value == "1.9"


def test_another_text_has_a_card_and_yardsticks_of_its_own(tmp_path: Path) -> None:
    run = record(tmp_path, EVALUATION | {"split": "test"})
    found = shown(run)
    assert found["Validation perplexity"].value == "7.00"
    assert found["Validation perplexity"].details == ["evaluation of the best checkpoint during training"]
    assert (found["Residual"].value, found["Evaluations per solve"].value) == ("0.003", "8.0")
    assert found["Test perplexity"].value == "7.50"
    assert found["Test perplexity"].details[:2] == ["unigram model 31.25", "trigram model 12.50"]
    assert [plot.references for plot in loss_plots(run)] == [[], []]


def test_how_much_the_map_contracts_has_a_card_and_spreads_their_parts(tmp_path: Path) -> None:
    figures = {"mean": 0.4123, "median": 0.4, "p90": 0.5, "p95": 0.6, "worst": 0.7}
    counts = {"mean": 4.26, "median": 4.0, "p90": 6.5, "p95": 7.0, "worst": 9.0}
    found = shown(record(tmp_path, EVALUATION | {"spectral_radius": figures, "evaluations": counts}))
    assert found["Spectral radius"].value == "0.41"
    assert list(found["Spectral radius"].details) == [
        *("mean over some tokens", "median 0.40", "90th percentile 0.50", "95th percentile 0.60", "worst 0.70")
    ]
    assert found["Evaluations per solve"].details[0] == (
        "per token 4.3, median 4, 90th percentile 6.5, 95th percentile 7, worst 9"
    )


def test_other_lengths_are_named(tmp_path: Path) -> None:
    run = record(tmp_path, EVALUATION | {"memory_length": 480, "segment_length": 4})
    run.recipe = tiny_recipe(tmp_path)
    assert shown(run)["Validation perplexity"].details[-2:] == ["segment length 4", "memory length 480"]
    run = record(tmp_path, EVALUATION | {"memory_length": 8, "segment_length": None, "chunk_length": 1})
    run.recipe = tiny_recipe(tmp_path)
    assert shown(run)["Validation perplexity"].details[-1:] == ["chunk length 1"]


@pytest.mark.parametrize(("split", "loss"), [("valid", "0.5"), ("test", "1.9")])
def test_a_task_is_headed_by_its_loss(tmp_path: Path, split: str, loss: str) -> None:
    shares = {"accuracy": 0.75, "last_accuracy": 0.5, "sequence_accuracy": 0.25}
    run = record(tmp_path, EVALUATION | shares | {"split": split, "loss": 0.5, "chance_loss": 0.875})
    run.recipe = tiny_task_recipe(tmp_path)
    found = shown(run)
    assert found["Validation loss"].value == loss
    of_its_own = found["Validation loss" if split == "valid" else "Test loss"]
    assert of_its_own.value == "0.5"
    assert "chance 0.875" in of_its_own.details
    assert "75.00% of the answers right" in of_its_own.details
    assert "50.00% right at the last position" in of_its_own.details
    assert "25.00% of the sequences right at every position" in of_its_own.details
