"""`equilibria train`: its flags, which are an interface, and what it leaves on disk."""

import json
import re
from pathlib import Path

import pytest

import tiny
from equilibria.cli.app import main
from equilibria.cli.recipe_help import sections
from equilibria.configuration import write_recipe
from equilibria.inference import load
from equilibria.models import LanguageModel

FLAGS = {
    "run": "name directory",
    'data.source = "embedded"': "cache",
    "data.tokenizer": "kind vocabulary_size minimum_count path",
    'data.source = "files"': "files valid_fraction test_fraction cache",
    'data.source = "folder"': "path cache",
    'data.source = "cellular_automaton"': "rule width distractors samples held_out seed",
    'data.source = "word_problem"': (
        "length shortest staying growing growth_power valid_length held_out samples seed group"
    ),
    'data.source = "hop_induction"': (
        "length shortest staying growing growth_power valid_length held_out samples seed hops alphabet"
    ),
    'data.source = "maze"': "held_out samples seed height width",
    'data.source = "sudoku"': "held_out samples seed size givens",
    'data.source = "sudoku_files"': "path puzzles augment held_out seed",
    'data.source = "copy_memory"': "symbols held_out seed blanks",
    'data.source = "reversal"': "symbols held_out seed",
    "model": (
        "embedding memory_length cell depth dropout chunk_length prelude_layers coda_layers coda_inner auxiliary_weight"
    ),
    'model.embedding.kind = "adaptive"': "cutoffs div_val untied_projections initialisation d_embed tied_tables",
    'model.embedding.kind = "untied"': "d_embed cutoffs",
    "model.regularisation": "token_dropout input_dropout output_dropout activation_penalty slowness_penalty",
    "model.cell": "d_model dropout normalisation",
    'model.cell.kind = "contractive"': (
        "heads inner blocks norm causal positions columns query_key_norm query_key_gain key_value_heads activation "
        "strict slope_factor carry token_carry injection_norm"
    ),
    'model.cell.kind = "transformer_xl"': (
        "heads inner attention_dropout norm_position affine window initial_std blocks interleaved output_norm"
    ),
    'model.cell.kind = "trellis"': "hidden output_size dilation weight_dropout recurrent_std scan",
    'model.depth.kind = "equilibrium"': (
        "solver gradient eval_solver residual_penalty penalty_above jacobian_penalty states_every rounds"
    ),
    "model.depth.solver": "tol max_evaluations scope criterion fallback check_every trace_groups",
    "model.depth.solver.draft": "dtype tol max_evaluations",
    'model.depth.solver.method = "anderson"': "history ridge damping",
    'model.depth.solver.method = "broyden"': "history halvings",
    'model.depth.solver.method = "newton_krylov"': "inner forcing products",
    'model.depth.solver.method = "picard"': "damping",
    'model.depth.gradient.method = "guarded"': "solver checkpoint",
    "model.depth.gradient.solver": "tol max_evaluations scope criterion",
    'model.depth.gradient.method = "implicit"': "solver higher_order checkpoint",
    'model.depth.gradient.method = "jacobian_free"': "checkpoint",
    'model.depth.gradient.method = "neumann"': "terms checkpoint",
    'model.depth.gradient.method = "phantom"': "steps damping checkpoint",
    'model.depth.gradient.method = "reuse_inverse"': "refine checkpoint",
    'model.depth.gradient.method = "reversible"': "steps damping keep_every bound",
    'model.depth.gradient.method = "switching"': "share",
    "model.depth.gradient.converged": "solver higher_order checkpoint",
    "model.depth.gradient.otherwise": "steps damping checkpoint",
    'model.depth.gradient.method = "unrolled"': "steps checkpoint",
    "model.depth.start": "std share",
    "model.depth.noise": "std",
    "model.depth.restarts": "starts std seed",
    "model.depth.schedule": "warmup_steps warmup_share warmup_applications limits gradient_steps",
    'model.depth.schedule.limits.kind = "random"': "least most",
    'model.depth.schedule.limits.kind = "growing"': "first last",
    "model.depth.schedule.jacobian": "weight last_weight probability",
    "model.depth.schedule.residual": "weight last_weight",
    'model.depth.kind = "stack"': "layers tied shared_biases",
    'model.depth.kind = "unrolled"': "applications checkpoint states_every",
    "training": (
        "steps batch_size segment_length accumulation learning_rate optimizer schedule averaging clip "
        "precision compile skipped_steps evaluate_every evaluate_tokens checkpoint_every "
        "checkpoints_kept log_every tensorboard seed device initial_weights threads"
    ),
    "training.rates": "embedding cell head vectors",
    "training.optimizer": "weight_decay",
    'training.optimizer.kind = "adamw"': "beta1 beta2",
    'training.optimizer.kind = "adam"': "beta1 beta2",
    'training.optimizer.kind = "radam"': "beta1 beta2",
    'training.optimizer.kind = "sgd"': "momentum",
    'training.optimizer.kind = "muon"': "beta1 beta2 momentum",
    "training.schedule": "warmup_steps",
    'training.schedule.kind = "cosine"': "final_rate",
    'training.schedule.kind = "linear"': "final_rate",
    'training.schedule.kind = "warmup_stable_decay"': "final_rate decay_steps",
    'training.averaging.kind = "exponential"': "decay",
    'training.averaging.kind = "uniform"': "start patience",
    "distributed": "strategy",
}
"""What a recipe can say, by section and kind.

A change here changes what users have written down: note it in CHANGELOG.md.
"""


def listed() -> dict[str, tuple[tuple[str, str], ...]]:
    """The flags below each section, all kinds, each with what there is to say of it."""
    return {section.title.partition(": ")[0]: section.flags for section in sections() if section.flags}


def test_the_settings_are_these() -> None:
    found = {title: " ".join(flag.split()[0] for flag, _ in flags) for title, flags in listed().items()}
    assert {title: keys for title, keys in found.items() if "gradient.solver." not in title} == FLAGS


def test_every_setting_is_explained() -> None:
    flags = [(title, *flag) for title, flags in listed().items() for flag in flags]
    assert [entry for entry in flags if not re.match(r"[A-Za-z'`].{8}", entry[2])] == []


def test_help_is_short_and_shows_a_section_on_request(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    for part in ("--resume", "--json", "training.schedule "):
        assert part in shown
    assert "warmup_steps INT" not in shown
    assert len(shown.splitlines()) <= 60
    assert main(["train", "--help", "model.depth.solver"]) == 0
    shown = capsys.readouterr().out
    assert 'method = "broyden"' in shown
    assert "training.schedule" not in shown
    assert "Usage" not in shown


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


def test_it_ends_with_the_folder_and_the_next_commands(
    run: Path, tiny_toml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(run), "--resume"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[-4:] == [
        f"the run is in {run}; go on with:",
        *(f"  equilibria {command} {run}" for command in ("eval", "generate", "report")),
    ]


def test_a_task_is_not_written_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tiny.tiny_task_recipe(tmp_path)
    write_recipe(recipe, tmp_path / "task.toml")
    assert main(["train", str(tmp_path / "task.toml"), "--training.steps", "1"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in shown[-2:]] == ["eval", "report"]
