"""`equilibria eval`."""

import json
import shutil
from pathlib import Path

import pytest

from equilibria.cli.app import main
from equilibria.manifest import write_manifest

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
        "evaluations_per_solve",
        "solves",
        "unconverged",
    ),
    *("tolerance", "max_evaluations", "leave"),
    *("seconds", "tokens_per_second", "unigram_perplexity", "trigram_perplexity"),
}


def evaluated(run: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, object]:
    capsys.readouterr()
    assert main(["eval", str(run), "--json", *flags]) == 0
    return json.loads(capsys.readouterr().out)


def test_json_is_all_that_is_printed_and_is_kept(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = evaluated(run, capsys)
    assert set(figures) == FIGURES
    assert figures == json.loads((run / "evaluation.json").read_text())
    assert (figures["checkpoint"], figures["step"]) == ("step-12", 12)
    assert [figures[name] for name in ("tolerance", "max_evaluations", "leave")] == [None, None, None]
    assert figures["tokens"] == sum(len(path.read_bytes()) for path in run.parents[1].glob("text/valid.txt")) - 1


def test_a_table_without_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(run), "--split", "test"]) == 0
    shown = capsys.readouterr().out
    assert "test" in shown
    assert "95th percentile" in shown


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
    assert "fixed depth" in capsys.readouterr().err


def test_a_text_that_has_changed_is_noticed(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("config.toml", "checkpoints"):
        (copy / name).symlink_to(run / name)
    (copy / "tokenizer.json").write_text((run / "tokenizer.json").read_text().replace("}", " }"))
    write_manifest(copy, ["tokenizer.json"])
    assert main(["eval", str(copy)]) == 2
    assert "has changed" in capsys.readouterr().err


@pytest.mark.parametrize("leave", ["converged", "unchanged", "budget"])
def test_tokens_may_leave_early(leave: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    together = evaluated(run, capsys, "--tolerance", "1e-5", "--max-evaluations", "40")
    apart = evaluated(run, capsys, "--leave", leave, "--tolerance", "1e-5", "--max-evaluations", "40")
    assert apart["tokens"] == together["tokens"]
    assert apart["loss"] == pytest.approx(together["loss"], abs=1e-2)


@pytest.mark.parametrize("flags", [["--json"], []])
def test_figures_that_cannot_be_kept_are_printed_all_the_same(
    flags: list[str], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("evaluation.json")))
    (copy / "evaluation.json").mkdir()
    assert main(["eval", str(copy), *flags]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out).keys() == FIGURES if flags else "perplexity" in printed.out
    assert "warning: the figures are not kept in the run" in printed.err
    assert [path.name for path in copy.glob("*evaluation*")] == ["evaluation.json"]
    assert list((copy / "evaluation.json").iterdir()) == []
