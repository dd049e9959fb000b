"""`equilibria eval`."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from equilibria.cli.app import main
from equilibria.depths import UnrolledDepth
from equilibria.files.manifest import write_manifest
from equilibria.inference.evaluation import evaluate_model
from equilibria.inference.loading import load, load_run, load_task

FIGURES = {
    *(
        "split",
        "checkpoint",
        "step",
        "segment_length",
        "memory_length",
        "loss",
        "perplexity",
        "word_perplexity",
        "bits_per_byte",
    ),
    *(
        "tokens",
        "words",
        "bytes",
        "residual",
        "evaluations",
        "accuracy",
        "last_accuracy",
        "sequence_accuracy",
        "spectral_radius",
        "evaluations_per_solve",
        "solves",
        "unconverged",
    ),
    *("tolerance", "max_evaluations", "leave", "applications", "chunk_length", "text", "device", "unknown_tokens"),
    *("seconds", "tokens_per_second", "unigram_perplexity", "trigram_perplexity"),
}


def evaluated(run: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["eval", str(run), "--json", *flags]) == 0
    return json.loads(capsys.readouterr().out)


def test_json_is_all_that_is_printed_and_is_kept(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = evaluated(run, capsys, "--device", "cpu")
    assert set(figures) == FIGURES
    assert figures == json.loads((run / "evaluation.json").read_text())
    assert (figures["checkpoint"], figures["step"]) == ("step-12", 12)
    assert (figures["split"], figures["device"], figures["unknown_tokens"]) == ("valid", "cpu", None)
    asked = ("tolerance", "max_evaluations", "leave", "applications", "chunk_length")
    assert [figures[name] for name in asked] == [None] * 5
    assert 0 < figures["spectral_radius"]["median"] <= figures["spectral_radius"]["worst"]
    assert figures["tokens"] == sum(len(path.read_bytes()) for path in run.parents[1].glob("text/valid.txt")) - 1


def test_a_table_without_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(run), "--split", "test"]) == 0
    shown = capsys.readouterr().out
    assert "test" in shown
    assert "95th percentile" in shown
    assert "spectral radius" in shown


def test_the_table_fits_into_80_columns(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["eval", str(run)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert max(map(len, shown)) <= 80
    for figure in ("residual per token", "evaluations per token", "spectral radius"):
        (line,) = (number for number, line in enumerate(shown) if figure in line)
        assert all(name in shown[line] for name in ("mean", "median", "worst"))
        assert all(name in shown[line + 1] for name in ("90th percentile", "95th percentile"))


def test_applications_are_read_without_solving(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    solved = evaluated(run, capsys)
    losses = [evaluated(run, capsys, "--applications", str(number))["loss"] for number in (1, 40)]
    assert losses[0] != pytest.approx(solved["loss"], rel=1e-4)
    assert losses[1] == pytest.approx(solved["loss"], rel=1e-3)
    once = evaluated(run, capsys, "--applications", "1")
    assert (once["applications"], once["solves"], once["spectral_radius"]) == (1, 0, None)
    explicit = evaluate_model(load(run), load_task(load_run(run)).split("valid"), 2, 16, depth=UnrolledDepth(1))
    assert once["loss"] == pytest.approx(explicit.loss, rel=1e-6)
    assert main(["eval", str(run), "--applications", "1"]) == 0
    assert "evaluations" not in capsys.readouterr().out
    assert main(["eval", str(run), "--applications", "2", "--max-evaluations", "3"]) == 2
    assert "--applications 2 solves nothing" in capsys.readouterr().err


def test_a_text_is_read_in_chunks_over_a_cache(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tight = ["--tolerance", "1e-6", "--max-evaluations", "200"]
    whole = evaluated(run, capsys, *tight)
    chunks = evaluated(run, capsys, *tight, "--chunk-length", "16", "--memory-length", "8")  # as in training
    assert chunks["loss"] == pytest.approx(whole["loss"], rel=1e-4)
    assert (chunks["chunk_length"], chunks["segment_length"], chunks["memory_length"]) == (16, None, 8)
    single = evaluated(run, capsys, "--chunk-length", "1")
    assert single["memory_length"] == 16 + 8 - 1  # as far as generate sees
    assert single["tokens"] == whole["tokens"]
    assert single["solves"] > whole["solves"]
    assert main(["eval", str(run), "--chunk-length", "1", "--segment-length", "8"]) == 2
    assert "leave one of them out" in capsys.readouterr().err


def test_lengths_and_limits_are_used(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loose = evaluated(run, capsys, "--tolerance", "1e3", "--memory-length", "0", "--segment-length", "8")
    assert (loose["memory_length"], loose["segment_length"]) == (0, 8)
    assert loose["unconverged"] == 0.0
    tight = evaluated(run, capsys, "--tolerance", "1e-12", "--max-evaluations", "3")
    assert [tight[name] for name in ("tolerance", "max_evaluations", "leave")] == [1e-12, 3, None]
    assert tight["evaluations_per_solve"] == 3.0 + 1  # the last one measures
    assert tight["unconverged"] == 1.0


def test_a_fixed_depth_has_no_solver_to_limit(tiny_toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--run.name", "twin", "--model.depth.kind", "unrolled", "--training.steps", "2"]
    assert main(["train", str(tiny_toml), *flags]) == 0
    twin = tiny_toml.parent / "runs" / "twin"
    assert evaluated(twin, capsys)["evaluations_per_solve"] is None
    assert main(["eval", str(twin), "--tolerance", "0.1"]) == 2
    assert "no solver that can be limited" in capsys.readouterr().err


def test_a_text_that_has_changed_is_noticed(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("config.toml", "checkpoints"):
        (copy / name).symlink_to(run / name)
    (copy / "tokenizer.json").write_text((run / "tokenizer.json").read_text().replace("}", " }"))
    write_manifest(copy, ["tokenizer.json"])
    assert main(["eval", str(copy)]) == 2
    assert "has changed" in capsys.readouterr().err


@pytest.mark.parametrize("leave", ["converged", "unchanged"])
def test_tokens_may_leave_early(leave: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    together = evaluated(run, capsys, "--tolerance", "1e-5", "--max-evaluations", "40")
    apart = evaluated(run, capsys, "--leave", leave, "--tolerance", "1e-5", "--max-evaluations", "40")
    assert apart["tokens"] == together["tokens"]
    assert apart["loss"] == pytest.approx(together["loss"], abs=1e-2)


@pytest.mark.filterwarnings("always:could not save")
@pytest.mark.parametrize("flags", [["--json"], []])
def test_figures_that_cannot_be_kept_are_printed_all_the_same(
    flags: list[str], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("evaluation.json")))
    (copy / "evaluation.json").mkdir()
    assert main(["eval", str(copy), *flags]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out).keys() == FIGURES if flags else "perplexity" in printed.out
    assert "warning: could not save evaluation.json: " in printed.err
    assert [path.name for path in copy.glob("*evaluation*")] == ["evaluation.json"]
    assert list((copy / "evaluation.json").iterdir()) == []


@pytest.fixture
def words(tiny_toml: Path) -> Path:
    """The folder of a run whose tokens are words; trained once."""
    folder = tiny_toml.parent / "runs" / "words"
    if not folder.exists():
        flags = ["--data.tokenizer.kind", "word", "--data.tokenizer.vocabulary_size", "20", "--training.steps", "2"]
        assert main(["train", str(tiny_toml), "--run.name", "words", *flags]) == 0
    return folder


def test_another_text_is_read_with_the_tokens_of_the_run(
    words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = evaluated(words, capsys)
    before = {path: path.read_bytes() for path in words.rglob("*") if path.is_file()}
    monkeypatch.chdir(tmp_path)
    Path("other").mkdir()
    Path("other/test.txt").write_text("\ufeffthe cat sat\non a zebra\n")
    for path in (Path("other/test.txt"), tmp_path / "other/test.txt"):
        for flags in (["--data.files", str(path)], ["--data.source", "files", "--data.files", str(path)]):
            other = evaluated(words, capsys, *flags)
            assert other["text"] == {
                "source": "files",
                "files": [str(path)],
                "valid_fraction": 0.05,
                "test_fraction": 0.05,
                "digest": other["text"]["digest"],
                "own": False,
            }
            assert (other["tokens"], other["words"], other["split"]) == (7, 7, "all")
            assert other["unknown_tokens"] >= 1
    in_folder = evaluated(words, capsys, "--data.path", "other", "--split", "test")
    assert (in_folder["loss"], in_folder["unknown_tokens"]) == (other["loss"], other["unknown_tokens"])
    assert in_folder["text"] == {"source": "folder", "path": "other", "digest": other["text"]["digest"], "own": False}
    assert not {"unigram_perplexity", "trigram_perplexity"} & other.keys()
    assert {path: path.read_bytes() for path in words.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["other"], "nothing is left beside the text"
    assert json.loads((words / "evaluation.json").read_text()) == own
    assert own["text"]["own"]
    assert own["unknown_tokens"] > 0
    assert main(["eval", str(words), "--data.files", "other/test.txt"]) == 0
    shown = capsys.readouterr().out
    assert "test.txt: not the run's own" in shown
    assert "unknown words among them" in shown


def test_flags_that_name_the_runs_own_text_are_its_own(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = run.parents[1] / "text"
    figures = evaluated(run, capsys, "--data.path", str(text), "--split", "test")
    assert figures["text"]["own"]
    assert json.loads((run / "evaluation.json").read_text()) == figures


def test_bytes_of_another_text_are_read_to_the_byte(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "valid.txt").write_bytes(b"caf\xe9\r\n\r\nno end")
    figures = evaluated(run, capsys, "--data.path", str(tmp_path))
    assert (figures["tokens"] + 1, figures["bytes"]) == (14, 13)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data.path", "nowhere"], "nowhere does not exist"),
        (["--data.source", "files"], "data.files is missing"),
        (["--data.path", ".", "--data.files", "a.txt"], "--data.files: source folder has no such key"),
        (["--data.valid_fraction", "0.1"], "--data.valid_fraction: source folder has no such key"),
        (["--data.tokenizer", "word"], "--data.tokenizer: a run reads every text with its own tokenizer"),
        (["--data.source", "copy_memory"], "has another tokenizer than"),
        (["--device", "tpu"], '--device = "tpu": expected one of "auto", "cpu", "cuda", "mps"'),
    ],
)
def test_what_is_no_text_to_evaluate_is_named(
    flags: list[str], message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(run), *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_relative_text_is_not_found_elsewhere_and_says_why(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    text = run.parents[1] / "text"
    _, config = (copy / "config.toml").read_text().split("\n", 1)  # without the digest of what it was
    (copy / "config.toml").write_text(config.replace(str(text), "text"))
    monkeypatch.chdir(tmp_path)
    assert main(["eval", "copy"]) == 2
    assert "text does not exist here: copy/config.toml names the text as seen from" in capsys.readouterr().err
    assert evaluated(copy, capsys, "--data.path", str(text))["tokens"] > 100
