"""`equilibria reproduce`, on tables of the smallest models."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

import stand_ins
from equilibria.cli import reproduce
from equilibria.cli.app import main
from equilibria.configuration import Recipe, shipped
from equilibria.training.loop import TrainingLoop
from equilibria.training.trainer import TrainingResult


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    stand_ins.write_checkout(tmp_path)
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    trained = {"ptb": stand_ins.TEXT, "copy-memory": stand_ins.TASK}
    monkeypatch.setattr(reproduce, "TRAINED", trained)
    monkeypatch.setattr(reproduce, "MEASURED", {"memory": stand_ins.MEMORY, "runtime": stand_ins.RUNTIME})
    return tmp_path


def reproduced(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["reproduce", *arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def by_name(table: dict[str, Any]) -> dict[str, Any]:
    return {row["name"]: row for row in table["rows"]}


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """SIGTERM arrives while that step is taken."""
    take = TrainingLoop.step

    def taking(loop: TrainingLoop) -> Any:
        if loop.done == step - 1:
            signal.raise_signal(signal.SIGTERM)
        return take(loop)

    monkeypatch.setattr(TrainingLoop, "step", taking)


def test_what_was_not_run_says_so(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = by_name(reproduced(capsys, "ptb", "--scale", "tiny"))
    assert {row["status"] for row in rows.values()} == {"not run"}
    assert rows["equilibrium"]["note"] == "not started; train it with --train"
    assert rows["equilibrium"]["size"]["total"] - rows["equilibrium"]["size"]["inner"] == 300 * 16
    assert rows["equilibrium"]["published"]["figure"] == 42.0
    assert not list(checkout.glob("runs/reproduce/ptb/*-0"))
    assert main(["reproduce", "ptb"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("not run") == 2
    assert "42.0" in shown


def test_rows_are_trained_once(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = by_name(reproduced(capsys, "ptb", "--scale", "tiny", "--train"))
    assert [rows[name]["status"] for name in ("explicit", "equilibrium")] == ["run", "run"]
    figures = rows["equilibrium"]["figures"]
    assert 1 < figures["perplexity"] < 300
    assert figures["residual"]["mean"] > 0
    assert (figures["split"], figures["tokens"], figures["data"]) == ("test", 99, "text")
    assert figures["evaluations_per_solve"] > 1
    assert rows["explicit"]["figures"]["residual"]["mean"] is None
    assert rows["equilibrium"]["size"] == figures["size"]
    run = checkout / "runs/reproduce/ptb/equilibrium-tiny-0"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert by_name(reproduced(capsys, "ptb", "--scale", "tiny", "--train")) == rows
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert main(["reproduce", "ptb", "--scale", "tiny"]) == 0
    shown = capsys.readouterr().out
    assert f"{figures['perplexity']:.1f}" in shown
    assert "scaled down (tiny)" in shown


def test_it_writes_json_and_markdown(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = reproduced(capsys, "ptb", "--scale", "tiny", "--seed", "3", "--out", "elsewhere")
    assert json.loads((checkout / "elsewhere/ptb/tiny-3.json").read_text()) == found
    lines = (checkout / "elsewhere/ptb/tiny-3.md").read_text().splitlines()
    assert lines[0] == "# Perplexities of a text"
    assert sum(line.startswith("| An e") and "| not run |" in line for line in lines) == 2


def test_a_table_of_chosen_rows_leaves_the_whole_as_it_is(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = checkout / "runs" / "reproduce" / "ptb"
    reproduced(capsys, "ptb", "--scale", "tiny")
    whole = {path.name: path.read_text() for path in folder.iterdir()}
    assert set(whole) == {"tiny-0.json", "tiny-0.md"}
    found = reproduced(capsys, "ptb", "--scale", "tiny", "--rows", "explicit")
    assert json.loads((folder / "tiny-0,explicit.json").read_text()) == found
    reproduced(capsys, "ptb", "--scale", "tiny", "--rows", "explicit", "equilibrium")
    assert (folder / "tiny-0,equilibrium,explicit.md").is_file()
    assert {name: (folder / name).read_text() for name in whole} == whole


def test_a_seed_and_a_scale_have_runs_of_their_own(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("ptb", "--rows", "equilibrium", "--train", "--scale")
    tiny, small = reproduced(capsys, *flags, "tiny"), reproduced(capsys, *flags, "small", "--seed", "1")
    assert [row["name"] for row in tiny["rows"]] == ["equilibrium"]
    assert [table["rows"][0]["figures"]["step"] for table in (tiny, small)] == [6, 9]
    assert small["rows"][0]["size"]["total"] > tiny["rows"][0]["size"]["total"]
    assert small["rows"][0]["figures"]["tokens"] > 99
    folders = {path.name for path in (checkout / "runs/reproduce/ptb").iterdir() if path.is_dir()}
    assert folders == {"equilibrium-tiny-0", "equilibrium-small-1"}


def test_an_interrupted_row_goes_on(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("ptb", "--scale", "tiny", "--train")
    whole = by_name(reproduced(capsys, *command, "--out", "whole"))
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        rows = by_name(reproduced(capsys, *command, code=128 + signal.SIGTERM))
    assert rows["explicit"]["note"] == "stopped after step 4 of 6; resume it with --train"
    assert rows["equilibrium"]["note"] == "not started; train it with --train"
    assert not (checkout / "runs/reproduce/ptb/equilibrium-tiny-0").exists()
    assert by_name(reproduced(capsys, "ptb", "--scale", "tiny"))["explicit"]["note"] == rows["explicit"]["note"]
    rows = by_name(reproduced(capsys, *command))
    for name in ("explicit", "equilibrium"):
        assert rows[name]["figures"]["loss"] == whole[name]["figures"]["loss"]


def test_a_run_that_was_never_evaluated_is(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed between the last step and the evaluation."""
    command = ("ptb", "--scale", "tiny", "--train", "--rows", "explicit")
    whole = reproduced(capsys, *command)
    (checkout / "runs/reproduce/ptb/explicit-tiny-0/reproduction.json").unlink()
    again = reproduced(capsys, *command)
    assert again["rows"][0]["figures"]["loss"] == whole["rows"][0]["figures"]["loss"]


def test_a_changed_recipe_is_not_mixed_up_with_its_run(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("ptb", "--scale", "tiny", "--train", "--rows", "explicit")
    reproduced(capsys, *command)
    recipe = checkout / "recipes/ptb/explicit.toml"
    recipe.write_text(recipe.read_text().replace("applications = 8", "applications = 9"))
    row = reproduced(capsys, *command, code=1)["rows"][0]
    assert row["status"] == "not run"
    assert "explicit-tiny-0 was run with model.depth.applications = 8, not 9; remove it" in row["note"]


def test_a_run_is_the_same_by_another_path(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("ptb", "--scale", "tiny", "--rows", "explicit")
    before = reproduced(capsys, *flags, "--train", "--data-path", "text")
    out, text = str(checkout / "runs" / "reproduce"), str(checkout / "text")
    assert reproduced(capsys, *flags, "--data-path", text, "--out", out)["rows"] == before["rows"]
    shutil.move(out, checkout / "moved")
    assert reproduced(capsys, *flags, "--data-path", text, "--out", "moved")["rows"] == before["rows"]
    memory = ("memory", "--rows", "explicit", "--data-path", text, "--out")
    moved, elsewhere = (reproduced(capsys, *memory, folder)["contests"] for folder in ("moved", "elsewhere"))
    assert moved[0][0]["size"] != elsewhere[0][0]["size"]  # the trained model's vocabulary is that of its text


def test_a_missing_text_is_said_and_how_to_get_it(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = shutil.move(checkout / "text", checkout / "other")
    row = by_name(reproduced(capsys, "ptb", "--scale", "tiny", "--train", code=1))["explicit"]
    assert row["status"] == "not run"
    assert row["note"] == f"there is no {checkout / 'text'}; put a text there, or name another text with --data-path"
    assert by_name(reproduced(capsys, "ptb", "--scale", "tiny"))["explicit"]["note"] == row["note"]
    row = by_name(reproduced(capsys, "ptb", "--scale", "tiny", "--train", "--data-path", str(moved)))["explicit"]
    assert row["figures"]["data"] == "other"
    assert row["size"] == row["figures"]["size"]
    assert (checkout / "runs/reproduce/ptb-on-other/explicit-tiny-0").is_dir()
    assert (checkout / "runs/reproduce/ptb-on-other/tiny-0.md").is_file()


def test_a_row_that_cannot_be_trained_does_not_stop_the_others(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = checkout / "recipes/ptb/explicit.toml"
    recipe.write_text(recipe.read_text().replace("batch_size = 2", "batch_size = 100000"))
    rows = by_name(reproduced(capsys, "ptb", "--scale", "tiny", "--train", code=1))
    assert "too few for batch_size 100000" in rows["explicit"]["note"]
    assert rows["equilibrium"]["status"] == "run"


def test_a_row_that_breaks_does_not_stop_the_others(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train = reproduce.train_run

    def breaking(recipe: Recipe, **options: Any) -> TrainingResult:
        if "explicit" in recipe.run.name:
            raise RuntimeError("out of\nmemory")
        return train(recipe, **options)

    monkeypatch.setattr(reproduce, "train_run", breaking)
    capsys.readouterr()
    assert main(["reproduce", "ptb", "--scale", "tiny", "--train", "--json"]) == 1
    printed = capsys.readouterr()
    rows = by_name(json.loads(printed.out))
    assert (rows["explicit"]["status"], rows["explicit"]["note"]) == ("not run", "RuntimeError: out of memory")
    assert "in breaking" in printed.err
    assert rows["equilibrium"]["status"] == "run"
    assert "RuntimeError" in (checkout / "runs/reproduce/ptb/tiny-0.md").read_text()


def test_a_row_that_cannot_be_read_does_not_hide_the_others(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = checkout / "recipes/ptb/explicit.toml"
    text = recipe.read_text()
    recipe.write_text("[run")
    rows = by_name(reproduced(capsys, "ptb", "--scale", "tiny", code=1))
    assert (rows["explicit"]["size"], rows["equilibrium"]["note"]) == (None, "not started; train it with --train")
    assert "explicit.toml: cannot be read as TOML" in rows["explicit"]["note"]
    recipe.write_text(text)
    run = checkout / "runs/reproduce/ptb/explicit-tiny-0"
    run.mkdir()
    (run / "config.toml").write_text("[run")
    rows = by_name(reproduced(capsys, "ptb", "--scale", "tiny"))
    assert rows["explicit"]["size"] is not None
    assert "config.toml: cannot be read as TOML" in rows["explicit"]["note"]
    assert rows["equilibrium"]["note"] == "not started; train it with --train"


def test_a_task_needs_no_text(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = reproduced(capsys, "copy-memory", "--train")["rows"][0]
    assert (row["figures"]["split"], row["figures"]["tokens"]) == ("held out", 10 * 9)
    assert row["figures"]["chance"] == pytest.approx(2 * 2.0794415 / 9)
    assert main(["reproduce", "copy-memory", "--data-path", "text"]) == 2
    assert "copy-memory reads no text" in capsys.readouterr().err


def test_memory_is_measured(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = reproduced(capsys, "memory", "--scale", "tiny")
    explicit, equilibrium = found["contests"][0]
    assert explicit["ratio"] == 1
    assert equilibrium["ratio"] == equilibrium["saved_bytes"] / explicit["saved_bytes"]
    assert 0.08 < equilibrium["ratio"] < 0.4  # one application of eight, and what belongs to none
    assert (explicit["name"], equilibrium["published"]["gigabytes"]) == ("explicit", 1.0)
    assert equilibrium["peak_ratio"] == equilibrium["peak_bytes"] / explicit["peak_bytes"]
    assert equilibrium["peak_bytes"] > equilibrium["saved_bytes"]
    assert found["setting"]["batch_size"] == 2
    assert reproduced(capsys, "memory", "--scale", "tiny") == found
    assert main(["reproduce", "memory"]) == 0
    assert "0.25" in capsys.readouterr().out
    assert (checkout / "runs/reproduce/memory/tiny-0.md").is_file()


def test_fewer_rows_take_less_memory(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two, one = (reproduced(capsys, "memory", *flags) for flags in ((), ("--batch-size", "1")))
    assert (two["setting"]["batch_size"], one["setting"]["batch_size"]) == (2, 1)
    for row, other in zip(two["contests"][0], one["contests"][0], strict=True):
        assert 0.4 * row["saved_bytes"] < other["saved_bytes"] < 0.7 * row["saved_bytes"]
    names = {path.name for path in (checkout / "runs/reproduce/memory").glob("*.json")}
    assert names == {"tiny-0.json", "tiny-0-batch-1.json"}


def test_runtime_is_measured_in_turn(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = reproduced(capsys, "runtime", "--scale", "tiny")
    explicit, equilibrium = found["contests"][0]["rows"]
    assert explicit["training_ratio"] == {"median": 1, "lower_quartile": 1, "upper_quartile": 1}
    assert equilibrium["inference_ratio"]["lower_quartile"] <= equilibrium["inference_ratio"]["median"]
    assert equilibrium["training"]["median"] > 0
    assert not equilibrium["trained"]
    fewer = reproduced(capsys, "runtime", "--scale", "tiny", "--batch-size", "1")  # whatever the recipe's batches are
    assert fewer["setting"]["batch_size"] == 1
    reproduced(capsys, "ptb", "--scale", "tiny", "--train", "--rows", "equilibrium")
    explicit, equilibrium = reproduced(capsys, "runtime", "--rows", "equilibrium")["contests"][0]["rows"]
    assert equilibrium["trained"]
    assert not explicit["trained"]
    shutil.move(checkout / "text", checkout / "other")
    on_other = ("--data-path", "other", "--rows", "explicit")
    reproduced(capsys, "ptb", "--scale", "tiny", "--train", *on_other)
    explicit, equilibrium = reproduced(capsys, "runtime", *on_other)["contests"][0]["rows"]
    assert explicit["trained"]
    assert not equilibrium["trained"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ptb", "--rows", "explizit"], "--rows explizit: no such row; expected one of explicit, equilibrium"),
        (["memory", "--rows", "lstm"], "--rows lstm: no such row; expected one of explicit, equilibrium"),
        (
            ["ptb", "--rows", "equi" * 50],
            "--rows: the table's file would have too long a name; name fewer rows or none",
        ),
        (["memory", "--train"], "memory is measured, not trained: omit --train"),
        (
            ["ptb", "--batch-size", "4"],
            "ptb is trained by recipes, which say how many rows a batch has: omit --batch-size",
        ),
    ],
)
def test_what_cannot_be(checkout: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", *arguments]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not (checkout / "runs").exists()
