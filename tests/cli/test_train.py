"""`equilibria train`: its flags, which are an interface, and what it leaves on disk."""

import json
import re
from pathlib import Path

import pytest

from equilibria.cli.app import main
from equilibria.inference import load
from equilibria.models import LanguageModel

SOLVER = (
    *("method", "tol", "max_evaluations", "scope", "criterion", "draft", "fallback_damping", "check_every"),
    *("damping", "history", "ridge", "halvings", "inner", "forcing", "products"),
)
FLAGS = {
    "run": ("name", "directory"),
    "data": (
        *("source", "path", "files", "tokenizer", "vocabulary_size", "minimum_count", "cache"),
        "tokenizer_file",
        *("valid_fraction", "test_fraction", "blanks", "symbols", "held_out"),
    ),
    "model": (
        *("memory_length", "dropout", "chunk_length", "prelude_layers", "coda_layers", "coda_inner"),
        "auxiliary_weight",
    ),
    "model.embedding": ("kind", "cutoffs", "div_val", "d_embed", "untied_projections", "initialisation", "tied_tables"),
    "model.cell": (
        *("kind", "d_model", "heads", "inner", "blocks", "dropout", "normalisation"),
        *(
            "norm",
            "positions",
            "query_key_norm",
            "query_key_gain",
            "key_value_heads",
            "activation",
            "carry",
            "injection_norm",
        ),
        *("attention_dropout", "window", "norm_position", "affine", "initial_std"),
        *("hidden", "output_size", "dilation", "weight_dropout", "recurrent_std", "scan"),
    ),
    "model.depth": (
        *("kind", "applications", "tied", "shared_biases", "checkpoint", "states_every"),
        *("max_steps", "threshold", "ponder_weight", "residual_penalty", "penalty_above", "jacobian_penalty"),
    ),
    "model.depth.solver": SOLVER,
    "model.depth.eval_solver": SOLVER,
    "model.depth.gradient": (
        *("method", "steps", "damping", "checkpoint", "share", "terms", "keep_every", "bound"),
        *("adjoint", "tol", "max_evaluations", "restart", "history"),
    ),
    "model.depth.schedule": (
        *("warmup_steps", "warmup_share", "warmup_applications"),
        *("limits", "least_evaluations", "most_evaluations", "first_evaluations", "last_evaluations"),
        *("residual_weight", "residual_last_weight"),
        *("jacobian_weight", "jacobian_last_weight", "jacobian_probability"),
    ),
    "model.baseline": (
        *("kind", "d_model", "hidden", "layers", "weight_dropout", "window", "kernel_size"),
        *("kernel_sizes", "channels", "dropout", "slots", "heads", "head_size", "gates", "mlp_layers"),
        *("search", "cell_dropout", "recurrent_dropout", "hidden_dropout"),
        *("inner", "max_steps", "threshold", "ponder_weight"),
    ),
    "model.regularisation": (
        *("token_dropout", "input_dropout", "output_dropout", "activation_penalty", "slowness_penalty"),
    ),
    "training": (
        *("steps", "batch_size", "segment_length", "accumulation"),
        *("optimizer", "learning_rate", "weight_decay", "beta1", "beta2", "momentum"),
        *("schedule", "warmup_steps", "final_rate", "decay_steps"),
        *("averaging", "averaging_decay", "averaging_start", "averaging_patience"),
        *("precision", "compile", "skipped_steps", "clip", "tensorboard", "evaluate_every", "evaluate_tokens"),
        *("checkpoint_every", "checkpoints_kept", "log_every", "seed", "device", "initial_weights", "threads"),
    ),
    "training.rates": ("embedding", "cell", "head", "vectors"),
    "distributed": ("strategy",),
}
"""All that a recipe can say. A change here changes what users have written down: note it in CHANGELOG.md."""


def test_the_flags_are_these(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    expected = {f"--{section}.{key}" for section, keys in FLAGS.items() for key in keys}
    assert set(re.findall(r"^│ [* ]*(--\S+)", shown, re.MULTILINE)) == expected | {"--resume", "--json"}


def test_every_flag_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    main(["train", "--help"])
    lines = re.findall(r"^│ [* ]*(--\S+)(?: [A-Z.]+)? +(.*?) *│$", capsys.readouterr().out, re.MULTILINE)
    assert [flag for flag, text in lines if not re.match(r"[A-Za-z'].{10}", text)] == []


def test_a_run_folder_is_complete(run: Path) -> None:
    assert {"config.toml", "metrics.jsonl", "tokenizer.json", "checkpoints"} <= {path.name for path in run.iterdir()}
    assert isinstance(load(run), LanguageModel)


def test_json_says_how_the_run_ended(tiny_toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(tiny_toml), "--run.name", "json", "--training.steps", "6", "--json"]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert (result["step"], result["interrupted"]) == (6, False)
    assert result["validation"]["loss"] == result["best_loss"]
    assert "step 6" in printed.err


def test_resume_goes_on(tiny_toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = ["train", str(tiny_toml), "--run.name", "resumed", "--training.steps"]
    assert main([*first, "4"]) == 0
    assert main([*first, "6", "--resume"]) == 0
    assert "resuming from step 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags",
    [["--run.name", "shared"], ["--run.name", "other", "--training.stepz", "3"], ["--run.name", "a/b"]],
)
def test_bad_input_writes_nothing(
    run: Path, tiny_toml: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in tiny_toml.parent.rglob("*") if path.is_file()}

    before = contents()
    assert main(["train", str(tiny_toml), *flags]) == 2
    assert contents() == before
    assert capsys.readouterr().err.count("\n") == 1


def test_a_run_cannot_be_resumed_with_another_model(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = run / "config.toml"
    assert main(["train", str(config), "--resume", "--model.cell.d_model", "24"]) == 2
    assert "model.cell.d_model" in capsys.readouterr().err
