"""`equilibria train RUN --resume`: the run that is named goes on, wherever it is, and says what has changed."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import tiny
from equilibria.cli.app import main
from equilibria.configuration import read_recipe
from equilibria.inference.loading import load_run
from equilibria.runs.folder import RunFolder
from equilibria.runs.metrics import read_metrics
from equilibria.training import trainer


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def last(folder: Path) -> str:
    return RunFolder(folder).checkpoint("last").name


def train(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    capsys.readouterr()
    assert main(["train", *map(str, arguments)]) == code
    printed = capsys.readouterr()
    return printed.err if code else printed.out


def whole(folder: Path) -> Path:
    return folder


def recipe_in(folder: Path) -> Path:
    return folder / "config.toml"


@pytest.mark.parametrize("named", [whole, recipe_in])
def test_a_copy_goes_on_and_the_original_stays(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], named: Callable[[Path], Path]
) -> None:
    before, copy = contents(run), Path(shutil.copytree(run, tmp_path / "copy"))
    train(capsys, named(copy), "--resume", "--training.steps", 14)
    assert contents(run) == before
    assert last(copy) == "step-14"
    recipe = read_recipe(copy / "config.toml")
    assert (recipe.run.name, recipe.run.directory, recipe.training.steps) == ("copy", tmp_path, 14)


def test_a_run_is_resumed_from_within(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    for number, path in enumerate((".", "config.toml"), start=1):
        monkeypatch.chdir(copy)
        train(capsys, path, "--resume", "--training.steps", 12 + number)
        assert last(copy) == f"step-{12 + number}"


def test_a_recipe_and_a_name_find_a_run_too(
    run: Path, tiny_toml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ("--run.name", "named", "--run.directory", tmp_path)
    shutil.copytree(run, tmp_path / "named")
    for steps, recipe in ((13, tiny_toml), (14, run)):  # the recipe of a run as that of another one
        train(capsys, recipe, *place, "--resume", "--training.steps", steps)
        assert last(tmp_path / "named") == f"step-{steps}"


def test_a_run_is_not_begun_anew_where_it_is(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(run)
    assert "exists already; continue it with --resume" in train(capsys, run, code=2)
    assert contents(run) == before


def test_a_finished_run_keeps_its_recipe(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    before = contents(copy)
    other = ("--training.learning_rate", "1e-2", "--training.precision", "bfloat16")
    said = train(capsys, copy, "--resume", *other)
    assert "step 12 is the last of this recipe; raise training.steps to continue; " in said
    assert 'training.learning_rate = 0.01 (was 0.003), training.precision = "bfloat16" (was "float32")' in said
    assert (copy / "config.toml").read_bytes() == before["config.toml"]
    monkeypatch.setattr(trainer, "opened", lambda *_: pytest.fail("the text was read first"))
    said = train(capsys, copy, "--resume", *other, "--training.steps", 8, code=2)
    assert f"the run in {copy} has taken 12 steps, and training.steps = 8" in said
    assert (copy / "config.toml").read_bytes() == before["config.toml"]


def test_what_has_changed_is_said_and_so_is_a_rate_that_jumps(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    said = train(capsys, copy, "--resume", "--training.steps", 24)
    assert "resuming from step 12 with training.steps = 24 (was 12)\n" in said
    assert "the learning rate goes from 0.0003 to 0.00175 at step 13\n" in said
    messages = [line["message"] for line in read_metrics(copy / "metrics.jsonl") if line["kind"] == "event"]
    assert "the learning rate goes from 0.0003 to 0.00175 at step 13" in messages


def test_a_run_that_goes_on_as_before_says_no_more(
    run: Path, tiny_toml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ("--run.directory", tmp_path, "--training.schedule", "constant", "--training.steps")
    train(capsys, tiny_toml, *place, 6)
    said = train(capsys, tiny_toml, "--resume", *place, 8)
    assert "resuming from step 6 with training.steps = 8 (was 6)\n" in said
    assert "learning rate" not in said


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("n" * 300, "has 300 bytes: expected at most 240"),
        ("é" * 121, "has 242 bytes: expected at most 240"),
        ("a/b", "expected a name without slashes"),
        ("a\nb", r"'a\nb': expected a name that can be printed"),
        ("", "expected a name without slashes"),
    ],
)
def test_a_name_that_no_folder_can_have(
    tiny_toml: Path, capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    before = contents(tiny_toml.parent)
    said = train(capsys, tiny_toml, f"--run.name={name}", code=2)
    assert message in said
    assert said.count("\n") == 1
    assert contents(tiny_toml.parent) == before


@pytest.mark.parametrize("name", ["x.safetensors", "n" * 240])
def test_a_run_of_any_other_name_can_be_read(tiny_toml: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    train(capsys, tiny_toml, "--run.name", name, "--training.steps", 2)
    run = tiny_toml.parent / "runs" / name
    assert main(["eval", str(run)]) == 0
    assert load_run(run / "checkpoints" / "step-2" / ".." / "..").step == 2
    train(capsys, tiny_toml, "--run.name", f"from-{name[:100]}", "--training.initial_weights", run)
    train(capsys, run, "--resume", "--training.steps", 3)


def test_another_text_is_refused_before_it_is_read(
    tiny_toml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(tiny_toml), "--run.name", "refused", "--training.steps", "2"]) == 0
    text = tiny.write_text(tmp_path / "other")
    (text / "train.txt").write_text("another text altogether\n" * 100)
    capsys.readouterr()
    run = tiny_toml.parent / "runs" / "refused"
    assert main(["train", str(run), "--resume", "--training.steps", "4", "--data.path", str(text)]) == 2
    printed = capsys.readouterr()
    assert "the text or its tokenizer is not the one" in printed.err
    assert "encoding" not in printed.out
