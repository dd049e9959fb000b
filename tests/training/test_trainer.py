import io
import resource
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from equilibria.configuration import Recipe, read_recipe, table_of
from equilibria.data import FolderText
from equilibria.data.prepared import opened
from equilibria.depths import Equilibrium
from equilibria.distributed import World
from equilibria.errors import UserError
from equilibria.gradients import JacobianFree
from equilibria.inference.loading import load_run
from equilibria.models import LanguageModel
from equilibria.nn import TiedEmbedding
from equilibria.optimization import Constant
from equilibria.runs.folder import RunFolder
from equilibria.runs.metrics import read_metrics
from equilibria.solvers import Picard
from equilibria.training.trainer import Trainer
from tiny import TRAINING, tiny_recipe, tiny_trainer, wider, with_model, write_text

ACCURACIES = ("accuracy", "last_accuracy", "sequence_accuracy")
LONGER = replace(TRAINING, steps=16, schedule=Constant(warmup_steps=2))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def last_weights(recipe: Recipe) -> dict[str, torch.Tensor]:
    return load_file(RunFolder(recipe.run.folder).checkpoint("last") / "model.safetensors")


def interrupt_after(trainer: Trainer, step: int, number: signal.Signals) -> None:
    """Sends the signal to this process while that step is taken."""
    take = trainer.loop.step

    def taking() -> torch.Tensor:
        if trainer.loop.done == step - 1:
            signal.raise_signal(number)
        return take()

    trainer.loop.step = taking


def test_a_whole_run(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    stream = io.StringIO()
    result = tiny_trainer(recipe, Console(file=stream, width=200)).run()
    folder = RunFolder(recipe.run.folder)
    assert (result.step, result.interrupted, result.folder) == (12, None, recipe.run.folder)
    assert result.validation is not None
    assert result.best_loss is not None
    assert result.tokens_per_second > 0
    assert table_of(read_recipe(folder.config)) == table_of(recipe)
    lines = read_metrics(folder.metrics)
    assert [line["step"] for line in lines if line["kind"] == "train"] == [3, 6, 9, 12]
    assert [line["step"] for line in lines if line["kind"] == "valid"] == [6, 12]
    index = folder.index()
    assert index is not None
    assert index.last == "step-12"
    present = {entry.name for entry in folder.checkpoints.iterdir()}
    assert present == {"index.json", "step-8", index.last, index.best}  # two of the last are kept, and the best
    assert "step 12/12" in stream.getvalue()
    assert "validation" in stream.getvalue()


def test_metrics_hold_what_the_contract_says(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    tiny_trainer(recipe).run()
    lines = read_metrics(RunFolder(recipe.run.folder).metrics)
    train = next(line for line in lines if line["kind"] == "train")
    valid = next(line for line in lines if line["kind"] == "valid")
    both = {
        "kind",
        "step",
        "loss",
        "perplexity",
        "evaluations",
        "residual",
        "residual_worst",
        "unconverged",
        "seconds",
        "time",
    }
    assert train.keys() == both | {"tokens_per_second", "learning_rate", "gradient_norm", "skipped"}
    assert valid.keys() == both | {*ACCURACIES, "residual_p95", "evaluation_seconds"}
    assert [valid.pop(name) for name in ACCURACIES] == [None] * 3  # a text asks no questions
    assert all(value is not None for line in (train, valid) for value in line.values())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_says_so_and_the_run_goes_on_bit_for_bit(tmp_path: Path, number: signal.Signals) -> None:
    undisturbed, recipe = tiny_recipe(tmp_path, name="whole"), tiny_recipe(tmp_path)
    tiny_trainer(undisturbed).run()
    stream = io.StringIO()
    trainer = tiny_trainer(recipe, Console(file=stream, width=200))
    interrupt_after(trainer, 5, number)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    result = trainer.run()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert (result.step, result.interrupted) == (5, number)
    assert f"stopped by {number.name} after step 5; saved" in stream.getvalue()
    assert tiny_trainer(recipe).run(resume=True).step == 12
    expected, found = last_weights(undisturbed), last_weights(recipe)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)

    def losses(of: Recipe) -> list[tuple[object, ...]]:
        lines = read_metrics(RunFolder(of.run.folder).metrics)
        return [(line["kind"], line["step"], line["loss"]) for line in lines if line["kind"] != "event"]

    assert losses(recipe) == losses(undisturbed)


def test_a_terminal_that_goes_away_twice_or_after_sigterm_is_one_signal(tmp_path: Path) -> None:
    for number in (signal.SIGHUP, signal.SIGTERM):
        trainer = tiny_trainer(tiny_recipe(tmp_path, name=number.name))
        interrupt_after(trainer, 5, signal.SIGHUP)
        interrupt_after(trainer, 5, number)  # comes before the other
        result = trainer.run()
        assert (result.step, result.interrupted) == (5, number)


def test_a_terminal_that_goes_away_is_nothing_under_nohup(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        trainer = tiny_trainer(tiny_recipe(tmp_path))
        interrupt_after(trainer, 5, signal.SIGHUP)
        result = trainer.run()
        assert (result.step, result.interrupted) == (12, None)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_before_the_first_step_leaves_nothing_to_save_and_says_so(tmp_path: Path) -> None:
    recipe, stream = tiny_recipe(tmp_path), io.StringIO()
    trainer = tiny_trainer(recipe, Console(file=stream, width=200))

    class Early(World):
        def highest(self, *numbers: float) -> list[float]:
            """The signal comes before any step is taken."""
            return [float(signal.SIGINT)]

    trainer._world = Early()
    result = trainer.run()
    assert (result.step, result.interrupted) == (0, signal.SIGINT)
    assert "stopped by SIGINT before the first step; nothing to save" in stream.getvalue()
    assert RunFolder(recipe.run.folder).index() is None
    assert tiny_trainer(recipe).run(resume=True).step == 12


def test_a_signal_that_comes_while_processes_ask_each_other_is_not_lost(tmp_path: Path) -> None:
    class Asking(World):
        def highest(self, *numbers: float) -> list[float]:
            """The signal comes when the answer, that there is none, is already on its way."""
            if numbers == (0,) and trainer.loop.done == 5:
                signal.raise_signal(signal.SIGTERM)
            return [*numbers]

    trainer = tiny_trainer(tiny_recipe(tmp_path))
    trainer._world = Asking()
    result = trainer.run()
    assert (result.step, result.interrupted) == (6, signal.SIGTERM)


def test_an_existing_folder_is_not_overwritten(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    tiny_trainer(recipe).run()
    before = files(recipe.run.folder)
    with pytest.raises(UserError, match=r"exists already; continue it with --resume"):
        tiny_trainer(recipe).run()
    assert files(recipe.run.folder) == before


def test_resuming_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run to resume"):
        tiny_trainer(tiny_recipe(tmp_path)).run(resume=True)
    assert not (tmp_path / "runs").exists()


def test_resuming_with_another_model_or_batch_names_the_key(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    tiny_trainer(recipe).run()
    before = files(recipe.run.folder)
    with pytest.raises(UserError, match=r"model\.cell\.d_model = 16, the recipe 24"):
        tiny_trainer(wider(recipe)).run(resume=True)
    with pytest.raises(UserError, match=r"training\.batch_size = 2, the recipe 3"):
        tiny_trainer(replace(recipe, training=replace(TRAINING, batch_size=3))).run(resume=True)
    assert files(recipe.run.folder) == before


def test_resuming_with_another_text_is_an_error(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    tiny_trainer(recipe).run()
    before = files(recipe.run.folder)
    text = write_text(tmp_path / "other")
    (text / "train.txt").write_text("something else entirely\n" * 50)
    assert isinstance(recipe.data, FolderText)
    other = replace(recipe, data=replace(recipe.data, path=text))
    with pytest.raises(UserError, match="the text or its tokenizer is not the one"):
        tiny_trainer(other).run(resume=True)
    assert files(recipe.run.folder) == before


def test_a_finished_run_can_be_made_longer(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    tiny_trainer(recipe).run()
    assert tiny_trainer(recipe).run(resume=True).step == 12
    longer = replace(recipe, training=replace(TRAINING, steps=15))
    assert tiny_trainer(longer).run(resume=True).step == 15
    assert read_recipe(RunFolder(recipe.run.folder).config).training.steps == 15


def test_a_run_killed_before_its_first_checkpoint_starts_anew(tmp_path: Path) -> None:
    undisturbed, recipe = tiny_recipe(tmp_path, name="whole"), tiny_recipe(tmp_path)
    tiny_trainer(undisturbed).run()
    trainer = tiny_trainer(recipe)

    def die() -> torch.Tensor:
        raise RuntimeError("killed")

    trainer.loop.step = die
    with pytest.raises(RuntimeError, match="killed"):
        trainer.run()
    tiny_trainer(recipe).run(resume=True)
    expected, found = last_weights(undisturbed), last_weights(recipe)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("damage", ["cut", "flipped"])
@pytest.mark.parametrize("file", ["model.safetensors", "trainer/shard-00001-model-00001-of-00001.safetensors"])
def test_a_damaged_checkpoint_is_set_aside_and_the_run_ends_as_if_it_had_not_been(
    tmp_path: Path, file: str, damage: str
) -> None:
    undisturbed, recipe = (tiny_recipe(tmp_path, LONGER, name) for name in ("whole", "tiny"))
    tiny_trainer(undisturbed).run()
    tiny_trainer(tiny_recipe(tmp_path, replace(LONGER, steps=12))).run()
    path = RunFolder(recipe.run.folder).checkpoint("last") / file
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content if damage == "flipped" else content[: len(content) // 2])
    stream = io.StringIO()
    result = tiny_trainer(recipe, Console(file=stream, width=400)).run(resume=True)
    said = stream.getvalue()
    assert path.name in said
    assert "going back to the checkpoint before it" in said
    assert "resuming from step 8" in said
    assert (RunFolder(recipe.run.folder).checkpoints / "damaged-step-12").is_dir()
    expected, found = last_weights(undisturbed), last_weights(recipe)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert result.best_loss is not None


def test_a_damaged_model_is_not_loaded(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    tiny_trainer(recipe).run()
    path = RunFolder(recipe.run.folder).checkpoint("best") / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors is not what was saved"):
        load_run(recipe.run.folder)
    (path.parent / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"manifest\.json is missing; restore it, or take another checkpoint \(step-"):
        load_run(recipe.run.folder)


def poisoned(trainer: Trainer, steps: range) -> None:
    """One sample's state is not a number in those steps."""

    def poison(module: object, arguments: object, state: torch.Tensor) -> torch.Tensor:
        training = trainer.loop.model.training and trainer.loop.done in steps
        return torch.cat([state[:1] * float("nan"), state[1:]]) if training else state

    assert isinstance(trainer.model, LanguageModel)
    trainer.model.cell.register_forward_hook(poison)


def test_steps_that_are_not_finite_are_skipped_and_counted(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    stream = io.StringIO()
    trainer = tiny_trainer(recipe, Console(file=stream, width=200))
    poisoned(trainer, range(4, 6))
    result = trainer.run()
    assert result.step == 12
    assert trainer.loop.skipped == 2
    lines = read_metrics(RunFolder(recipe.run.folder).metrics)
    assert [line["skipped"] for line in lines if line["kind"] == "train"] == [0, 2, 0, 0]
    assert all(line["loss"] is not None for line in lines if line["kind"] == "train")
    assert "gradient of step 5 is infinite or NaN; skipped steps so far: 1" in stream.getvalue()
    assert all(tensor.isfinite().all() for tensor in last_weights(recipe).values())


def test_too_many_steps_that_are_not_finite_end_the_run_and_keep_the_last_checkpoint(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, replace(TRAINING, skipped_steps=3))
    trainer = tiny_trainer(recipe)
    poisoned(trainer, range(6, 12))
    with pytest.raises(UserError, match=r"step 10 is infinite or NaN; 4 steps in a row.*lower.*step 8 stays"):
        trainer.run()
    assert all(tensor.isfinite().all() for tensor in last_weights(recipe).values())


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    trainer = tiny_trainer(recipe)
    take = trainer.loop.step

    def breaking() -> torch.Tensor:
        if trainer.loop.done == 7:
            with torch.no_grad():
                next(trainer.model.parameters()).fill_(float("nan"))
        return take()

    trainer.loop.step = breaking
    with pytest.raises(UserError, match=r"weights are infinite or NaN at step 8 .*step 6 stays"):
        trainer.run()
    assert RunFolder(recipe.run.folder).checkpoint("last").name == "step-6"


def swinging(base: Path, damping: float | None, name: str) -> tuple[str, list[dict[str, object]]]:
    """What is said, and the lines, of a run whose map swings ever wider under plain iteration."""
    recipe = tiny_recipe(base, name=name)
    plain = Picard(tol=1e-2, max_evaluations=30, scope="prefix")
    solver = plain if damping is None else replace(plain, fallback=replace(plain, damping=damping))
    recipe = with_model(recipe, depth=Equilibrium(solver=solver, gradient=JacobianFree()))
    stream = io.StringIO()
    trainer = tiny_trainer(recipe, Console(file=stream, width=400))
    assert isinstance(trainer.model, LanguageModel)
    trainer.model.cell.register_forward_hook(lambda module, arguments, state: 0.1 * state - 1.6 * arguments[0])
    trainer.run()
    lines = read_metrics(RunFolder(recipe.run.folder).metrics)
    return stream.getvalue(), [line for line in lines if line["kind"] == "train"]


def test_solves_that_fail_are_reported_and_damping_helps(tmp_path: Path) -> None:
    failed = "solves since the last line stalled, diverged or met values that are not finite"
    said, lines = swinging(tmp_path, None, "plain")
    assert failed in said
    assert all(line["unconverged"] == 1.0 for line in lines)
    said, lines = swinging(tmp_path, 0.4, "damped")
    assert failed not in said
    assert all(line["unconverged"] == 0.0 for line in lines)


def test_a_full_disk_loses_nothing_that_was_saved(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    undisturbed = tiny_recipe(tmp_path, name="whole")
    tiny_trainer(undisturbed).run()
    trainer = tiny_trainer(recipe)
    take = trainer.loop.step
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def filling() -> torch.Tensor:
        if trainer.loop.done == 7:  # from here on no file may grow beyond 8 kB, less than a checkpoint
            resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
        return take()

    trainer.loop.step = filling
    try:
        with pytest.raises(UserError, match=r"step 8 cannot be saved .*File too large.*step-6 stays"):
            trainer.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {entry.name for entry in (recipe.run.folder / "checkpoints").iterdir()} == {"index.json", "step-4", "step-6"}
    tiny_trainer(recipe).run(resume=True)
    expected, found = last_weights(undisturbed), last_weights(recipe)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_tokens_outside_the_vocabulary_are_named(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    trainer = tiny_trainer(recipe)
    trainer.model.embedding = TiedEmbedding(40, 16)
    with pytest.raises(UserError, match=r"token id \d+ at position"):
        Trainer(trainer.model, recipe, opened(recipe.data), recipe.run.folder, Console(quiet=True))
    assert not recipe.run.folder.exists()


@pytest.mark.parametrize("text", ["", "short\n"])
def test_a_text_that_is_empty_or_too_short_makes_no_run(tmp_path: Path, text: str) -> None:
    recipe = tiny_recipe(tmp_path)
    (tmp_path / "text" / "train.txt").write_text(text)
    with pytest.raises(UserError, match=r"empty|too few"):
        tiny_trainer(recipe).run()
    assert not recipe.run.folder.exists()
