"""Every command on a run about no text but about sequences that are made."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from equilibria.cli.app import main
from equilibria.configuration import write_recipe
from equilibria.data import CopyMemory, Reversal
from equilibria.data.prepared import opened
from equilibria.errors import UserError
from equilibria.inference.loading import load, load_run, load_task
from equilibria.paper.universal_transformer import UniversalTransformerModel
from equilibria.runs.metrics import read_metrics
from sudokus import boards, write
from tiny import tiny_task_recipe

TASK = CopyMemory(blanks=5, symbols=3, held_out=50)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("task")
    write_recipe(tiny_task_recipe(base), base / "task.toml")
    assert main(["train", str(base / "task.toml")]) == 0
    return base / "runs" / "task"


def test_the_task_of_a_run_is_that_of_its_recipe(run: Path) -> None:
    loaded = load_run(run)
    assert load_task(loaded) == opened(loaded.recipe.data) == TASK
    assert loaded.tokenizer.vocabulary_size == TASK.vocabulary_size == 10


@pytest.mark.parametrize(
    "command", [["generate"], ["serve", "--port", "0"], ["export", "--to", "hf"]], ids=lambda words: words[0]
)
def test_answers_that_are_not_the_next_inputs_are_no_text_to_write(
    run: Path, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = [str(tmp_path / "out")] if command[0] == "export" else []
    assert main([command[0], str(run), *out, *command[1:]]) == 2
    said = "error: the answers of copy memory are not the next inputs, so the model continues no text; "
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_training_validates_on_so_many_whole_sequences(run: Path) -> None:
    lines = [line for line in read_metrics(run / "metrics.jsonl") if line["kind"] == "valid"]
    assert [line["step"] for line in lines] == [6, 12]
    model, nats, right, come = load_run(run, "last").model, 0.0, 0, 0
    # evaluate_tokens = 200 of 11 positions in batches of 2 sequences: 10 batches of 22
    with torch.no_grad():
        for number in range(10):
            segment = TASK.segment(torch.arange(2 * number, 2 * number + 2).numpy())
            scores = model(segment.inputs).logits
            nats += torch.nn.functional.cross_entropy(scores.flatten(0, 1), segment.targets.flatten()).item() / 10
            right += int((scores.argmax(-1) == segment.targets)[:, -3:].sum())
            come += 6
    assert lines[-1]["loss"] == pytest.approx(nats, rel=1e-5)
    assert lines[-1]["accuracy"] == right / come
    assert lines[-1]["sequence_accuracy"] <= lines[-1]["last_accuracy"] <= 1


def test_eval_measures_loss_and_accuracy_beside_chance(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["eval", str(run), "--json", "--max-evaluations", "3", "--batch-size", "7"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures == json.loads((run / "evaluation.json").read_text())
    assert figures["tokens"] == 50 * TASK.length
    assert figures["chance_loss"] == TASK.chance
    assert 0 <= figures["sequence_accuracy"] <= figures["accuracy"] <= 1
    assert figures["evaluations_per_solve"] == 3.0 + 1  # the last one measures
    assert not {"word_perplexity", "bits_per_byte", "unigram_perplexity"} & figures.keys()
    assert main(["eval", str(run)]) == 0
    shown = capsys.readouterr().out
    for part in ("chance loss", "of the answers", "at the last position", "whole sequences", "nats per token"):
        assert part in shown
    assert "perplexity" not in shown
    assert main(["eval", str(run), "--split", "test"]) == 2
    assert "copy memory has no test split" in capsys.readouterr().err


def test_the_report_shows_losses_on_a_logarithmic_axis_beside_chance(run: Path) -> None:
    assert main(["eval", str(run)]) == 0
    assert main(["report", str(run)]) == 0
    html = (run / "report.html").read_text(encoding="utf-8")
    for part in ("Validation loss", "nats per position", f"chance {TASK.chance:.3g}", "of the answers right", "Recipe"):
        assert part in html
    for part in ("perplexity</dt>", "Evaluations per token</h2>", "Missing from this report"):
        assert part not in html
    assert "Residual against evaluations" in html


def test_a_model_with_too_few_classes_is_an_error(run: Path) -> None:
    TASK.check(10)
    with pytest.raises(UserError, match="copy memory has 10 classes, the model only 9"):
        TASK.check(9)
    assert load(run).embedding.vocabulary_size == 10


def test_every_command_works_on_an_encoder_decoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = replace(
        tiny_task_recipe(tmp_path),
        data=Reversal(symbols=3, held_out=50),
        model=UniversalTransformerModel(d_model=16, heads=2, inner=24, max_steps=2, dropout=0.1),
    )
    write_recipe(recipe, tmp_path / "reversal.toml")
    run = tmp_path / "runs" / "task"
    assert main(["train", str(tmp_path / "reversal.toml"), "--training.steps", "6"]) == 0
    assert main(["train", str(tmp_path / "reversal.toml"), "--resume"]) == 0
    capsys.readouterr()
    assert main(["eval", str(run), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["step"], figures["tokens"], figures["chance_loss"]) == (12, 150, pytest.approx(math.log(8)))
    assert 0 < figures["loss"] < 4
    assert main(["generate", str(run), "--prompt", "123", "--max-new-tokens", "3", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["text"]) == 3
    assert main(["serve", str(run), "--port", "0", "--max-evaluations", "3"]) == 2
    assert "this model has no solver to limit" in capsys.readouterr().err
    assert main(["report", str(run)]) == 0
    assert f"chance {math.log(8):.3g}" in (run / "report.html").read_text(encoding="utf-8")


def test_eval_reads_the_task_at_another_length(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = (run / "evaluation.json").read_bytes() if (run / "evaluation.json").exists() else None
    capsys.readouterr()
    assert main(["eval", str(run), "--json", "--data.blanks", "9", "--data.held_out", "20"]) == 0
    figures = json.loads(capsys.readouterr().out)
    longer = CopyMemory(blanks=9, symbols=3, held_out=20)
    assert (figures["tokens"], figures["chance_loss"]) == (20 * longer.length, longer.chance)
    assert figures["text"] == {
        **{"source": "copy_memory", "blanks": 9, "symbols": 3, "held_out": 20, "seed": 0},
        **{"digest": longer.fingerprint, "own": False},
    }
    assert kept == ((run / "evaluation.json").read_bytes() if (run / "evaluation.json").exists() else None)


def test_eval_refuses_what_the_run_was_trained_on(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["eval", str(run), "--data.held_out", "51"]) == 2
    message = "held_out = 51: all sequences but the first 50 may have been trained on; give at most 50"
    assert message in capsys.readouterr().err
    assert main(["eval", str(run), "--data.seed", "-1"]) == 2
    assert "seed must be at least 0, found -1" in capsys.readouterr().err


RECIPE = """
[run]
name = "task"
directory = "{base}/runs"

[data]
{data}

[model.embedding]
kind = "untied"

[model.cell]
d_model = 16
heads = 2
inner = 24
causal = {causal}

[model.depth.solver]
max_evaluations = 3
scope = "{scope}"

[model.depth.eval_solver]
scope = "{scope}"

[training]
steps = 2
batch_size = 4
evaluate_every = 1
evaluate_tokens = 200
checkpoint_every = 1
threads = 1
"""

TASKS = {
    "word_problem": ("held_out = 8", ("valid_length", "20")),
    "hop_induction": ("hops = 3\nlength = 20\nshortest = 10\nheld_out = 8", ("valid_length", "30")),
    "cellular_automaton": ("samples = 40\nheld_out = 8", ("width", "16")),
    "maze": ("height = 5\nwidth = 7\nheld_out = 8", ("height", "9")),
    "sudoku": ("size = 4\ngivens = 8\nheld_out = 8\nsamples = 6", ("givens", "7")),
    "sudoku_files": ('path = "{base}"\npuzzles = 6\nheld_out = 8', ("puzzles", "5")),
}


@pytest.mark.parametrize("source", TASKS)
def test_every_task_trains_and_evaluates(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "train", *boards(20, 1))
    write(tmp_path, "test", *boards(20, 2))
    options, (name, value) = TASKS[source]
    recipe, run = tmp_path / "task.toml", tmp_path / "runs" / "task"
    causal = source in ("word_problem", "hop_induction")
    text = RECIPE.replace("{data}", f'source = "{source}"\n{options}').replace("{base}", str(tmp_path))
    text = text.replace("{causal}", str(causal).lower()).replace("{scope}", "prefix" if causal else "sample")
    recipe.write_text(text)
    assert main(["plan", str(recipe), "--seconds", "0.01", "--json"]) == 0
    assert main(["train", str(recipe)]) == 0
    assert main(["train", str(recipe), "--resume", "--training.steps", "3"]) == 0
    (*_, last) = [line for line in read_metrics(run / "metrics.jsonl") if line["kind"] == "valid"]
    assert last["step"] == 3
    capsys.readouterr()
    more = [["--split", "test"]] if source == "sudoku_files" else []
    if source == "sudoku_files":  # another folder of the same layout is no text
        write(tmp_path / "elsewhere", "train", *boards(20, 3))
        write(tmp_path / "elsewhere", "test", *boards(20, 4))
        more.append(["--data.path", str(tmp_path / "elsewhere")])
    for other in ([], *more, [f"--data.{name}", value]):
        assert main(["eval", str(run), "--json", *other]) == 0
        figures = json.loads(capsys.readouterr().out)
        assert 0 <= figures["accuracy"] <= 1
        assert 0 < figures["chance_loss"] < 5
        assert 0 < figures["chance_accuracy"] < 1
        assert figures["text"]["own"] == ("--split" in other or not other)
