"""A training run: the loop with its folder, metrics, display and interruptions."""

import math
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console

from equilibria.configuration import Recipe, checked, read_recipe
from equilibria.configuration.building import build_model
from equilibria.configuration.comparing import changes, settings
from equilibria.data.prepared import opened
from equilibria.data.progress import UNWATCHED, Progress
from equilibria.data.tasks.base import Task
from equilibria.distributed import ALONE, World, joined, launch, seed_process, training_device
from equilibria.errors import UserError
from equilibria.inference.evaluation import Evaluation, evaluate_model, perplexity
from equilibria.inference.loading import load_trained, writes_on
from equilibria.models import LanguageModel, TokenModel
from equilibria.ranges import instance
from equilibria.runs.checkpoints import read_checkpoint, save_checkpoint, sound_checkpoint, step_of
from equilibria.runs.folder import RunFolder
from equilibria.runs.metrics import MetricsWriter, NoMetrics
from equilibria.runs.trackers import TensorBoard, Tracker, require_tensorboard
from equilibria.training import preparation
from equilibria.training.display import Display, display
from equilibria.training.interruption import Interruption
from equilibria.training.loop import TrainingLoop
from equilibria.training.preparation import check_resumable, claimed, furnish_run
from equilibria.training.randomness import seed_everything


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended.

    Attributes:
        folder: the run folder.
        step: optimizer steps finished.
        interrupted: the number of the signal that stopped it (the exit code is 128 plus that), or None.
        validation: the last evaluation of this process, if there was one.
        best_loss: least validation loss so far, in nats per token; None before the first evaluation.
        seconds: training time of the whole run, evaluations and saving excluded.
        tokens_per_second: predicted tokens per second of this start's training; 0.0 without a step.
        writes_on: whether the model writes on after what it reads, as `generate` has it do.
        main: whether this is the process of rank 0.
    """

    folder: Path
    step: int
    interrupted: int | None
    validation: Evaluation | None
    best_loss: float | None
    seconds: float
    tokens_per_second: float
    writes_on: bool
    main: bool = True

    def to_json(self) -> dict[str, object]:
        """The figures as the json module writes them."""
        return {
            "run": str(self.folder),
            "step": self.step,
            "interrupted": self.interrupted is not None,
            "best_loss": self.best_loss,
            "validation": None if self.validation is None else self.validation.to_json(),
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
        }


class Trainer:
    """Trains a model into a run folder, as a recipe says.

    Args:
        model: freshly built, on the device to train on; call `seed_everything` before building it.
        recipe: the whole recipe, which is saved in the folder.
        task: the prepared text, or another task.
        run_folder: where everything is written.
        console: where to show progress.
        world: the processes that train together; rank 0 writes the folder and the output.
        trackers: receive each metrics record, from rank 0; closed when `run` ends.

    Raises:
        UserError: the text has token ids outside the vocabulary, or is too short for the batch; the batch cannot be
            divided among so many processes; or a package that the recipe needs is missing.
    """

    def __init__(
        self,
        model: TokenModel,
        recipe: Recipe,
        task: Task,
        run_folder: Path,
        console: Console,
        world: World = ALONE,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self.model = model
        self.recipe = recipe
        self.task = task
        self.folder = RunFolder(run_folder)
        self._console = console if world.main else Console(quiet=True)
        self._world = world
        self._trackers = trackers
        if recipe.training.tensorboard:
            require_tensorboard()
        training = recipe.training
        task.check(model.embedding.vocabulary_size)
        self._fingerprint = task.fingerprint
        batches = task.training(training.batch_size * training.accumulation, training.segment_length)
        self.loop = TrainingLoop(model, recipe.training, batches, world=world, strategy=recipe.distributed.strategy)
        self._warmup = model.depth.warmup(training.steps) if isinstance(model, LanguageModel) else 0
        self._seconds = 0.0  # spent in steps, by the whole run
        self._seconds_logged = 0.0  # of those, what the last line has counted
        self._best: float | None = None
        self._best_step: int | None = None
        self._saved: int | None = None  # the step of the last checkpoint
        self._validation: Evaluation | None = None

    def run(self, resume: bool = False) -> TrainingResult:
        """Trains to the end of the recipe or until a signal, and saves the last state if there was a step.

        Nobody else can write the run meanwhile. `resume` continues a killed run from its last checkpoint; on the CPU it
        ends with the weights of a run that was never killed, bit for bit. Otherwise the folder must not exist or be
        empty.

        Raises:
            RunInUse: another process writes the run.
            UserError: the folder, a checkpoint or the disk does not allow it, or the loss is no longer finite; earlier
                checkpoints stay.
        """
        training, world = self.recipe.training, self._world
        resume = resume or world.broadcast(preparation.made_before(self.folder))
        with claimed(self.folder, resume) if world.main else nullcontext():
            messages = self._begin(resume)
            first, seconds = self.loop.done, self._seconds
            shown = display(self._console, self.recipe.run.name, training.steps, first)
            interruption = Interruption(patient=launch() is not None)
            with closing(self._writer(first)) as self._metrics, interruption, shown:
                for message in messages:
                    self._event(message, shown)
                while self.loop.done < training.steps and not self._interrupted(interruption):
                    with self._timed():
                        self.loop.step()
                    self._account(shown)
                if interruption.signal is not None:
                    self._stop(signal.Signals(interruption.signal).name, shown)
        taken = self._seconds - seconds
        return TrainingResult(
            folder=self.folder.path,
            step=self.loop.done,
            interrupted=interruption.signal,
            validation=self._validation,
            best_loss=self._best,
            seconds=self._seconds,
            tokens_per_second=self.loop.tokens / taken if taken else 0.0,
            writes_on=writes_on(self.model, self.recipe.data),
            main=world.main,
        )

    def _begin(self, resume: bool) -> list[str]:
        """Sets up the process, and the folder or what was saved in it; returns what there is to say of that."""
        if self.recipe.training.threads is not None:
            torch.set_num_threads(self.recipe.training.threads)
        seed_process(self.recipe.training.seed, self._world)
        if resume:
            return self._resume()
        if self._world.main:
            furnish_run(self.folder, self.recipe, self.task.tokenizer)
        return []

    def _writer(self, first: int) -> MetricsWriter:
        if not self._world.main:
            return NoMetrics()
        board = [TensorBoard(self.folder.tensorboard, first)] if self.recipe.training.tensorboard else []
        return MetricsWriter(self.folder.metrics, first, [*self._trackers, *board])

    def _account(self, shown: Display) -> None:
        """Logs, evaluates and saves what is due after a step."""
        self._check_skipped(shown)
        training, step = self.recipe.training, self.loop.done
        last = step == training.steps
        shown.advance(step)
        if last or step % training.log_every == 0:
            self._log(shown)
        better = (last or step % training.evaluate_every == 0) and self._evaluate(shown)
        if last or better or step % training.checkpoint_every == 0:
            self._save(better)

    def _interrupted(self, interruption: Interruption) -> bool:
        """Whether any process received a signal: all stop after the same step."""
        signalled = int(self._world.highest(interruption.signal or 0)[0])
        if signalled:  # one that arrived during the exchange counts for the next step
            interruption.signal = signalled
        return bool(signalled)

    def _check_skipped(self, shown: Display) -> None:
        """Reports a skipped step, and ends the run after too many in a row."""
        skipped, limit = self.loop.skipped_in_a_row, self.recipe.training.skipped_steps
        if not skipped:
            return
        said = f"loss or gradient of step {self.loop.done} is infinite or NaN"
        if skipped > limit:
            raise UserError(
                f"{said}; {skipped} steps in a row were skipped (training.skipped_steps = {limit}); "
                f"lower training.learning_rate or training.clip; {self._kept}"
            )
        self._event(f"{said}; skipped steps so far: {self.loop.skipped}", shown)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """What is done meanwhile counts as training time."""
        start = time.perf_counter()
        yield
        self._seconds += time.perf_counter() - start

    def _log(self, shown: Display) -> None:
        with self._timed():
            summary = self.loop.statistics.summary()  # waits for the device
        if summary is None:
            return
        taken = self._seconds - self._seconds_logged
        figures = {
            "loss": summary.loss,
            "perplexity": None if summary.loss is None else _finite(perplexity(summary.loss)),
            "evaluations": summary.evaluations,
            "unconverged": summary.unconverged,
            "residual": summary.residual,
            "residual_worst": summary.residual_worst,
            "tokens_per_second": summary.tokens / taken if taken else None,
            "learning_rate": self.loop.learning_rate,
            "gradient_norm": summary.gradient_norm,
            "skipped": summary.skipped,
            "seconds": self._seconds,
        }
        self._metrics.write("train", self.loop.done, figures)
        shown.train(self.loop.done, figures)
        if summary.failed:
            self._event(
                f"{summary.failed} of {summary.solves} solves since the last line stalled, diverged or met values "
                f"that are not finite; see model.depth.solver.fallback and model.depth.residual_penalty",
                shown,
            )
        self.loop.statistics.reset()
        self._seconds_logged = self._seconds

    def _evaluate(self, shown: Display) -> bool:
        training, valid = self.recipe.training, self.task.split("valid")
        sizes = training.batch_size, training.segment_length
        with self.loop.gathered():
            evaluated, limit = self.loop.evaluated, training.evaluate_tokens
            result = evaluate_model(
                evaluated, valid, *sizes, max_tokens=limit, world=self._world, depth=self.loop.depth, progress=shown
            )
        self._validation = result
        self.loop.validated(result.loss)
        figures = {**validation_figures(result), "seconds": self._seconds, "evaluation_seconds": result.seconds}
        self._metrics.write("valid", self.loop.done, figures)
        shown.valid(self.loop.done, figures)
        if self._best_step is not None and self._best_step <= self._warmup < self.loop.done:
            self._best = None  # a loss at the depth of the warm-up says nothing about the equilibrium
        better = math.isfinite(result.loss) and (self._best is None or result.loss < self._best)
        if better:
            self._best, self._best_step = result.loss, self.loop.done
        return better

    def _save(self, best: bool) -> None:
        if self._saved == self.loop.done:
            return
        if not self.loop.finite:
            raise UserError(f"weights are infinite or NaN at step {self.loop.done} and are not saved; {self._kept}")
        checkpoint = self.loop.checkpoint()
        scalars = {
            **checkpoint.scalars,
            "seconds": self._seconds,
            "seconds_logged": self._seconds_logged,
            "best_loss": self._best,
            "best_step": self._best_step,
            "corpus": self._fingerprint,
            "recipe": settings(self.recipe),
        }
        checkpoint = replace(checkpoint, scalars=scalars)
        kept = self.recipe.training.checkpoints_kept
        # A run resumed from this checkpoint finds all lines before it.
        self._metrics.flush()
        save_checkpoint(self.folder, self.loop.done, self.loop.weights(), checkpoint, best, kept, self._world)
        self._saved = self.loop.done

    @property
    def _kept(self) -> str:
        return f"the checkpoint of step {self._saved} stays" if self._saved else "no checkpoint had been saved"

    def _resume(self) -> list[str]:
        path, messages = self._world.broadcast(self._found() if self._world.main else (None, []))
        if path is None:
            return messages
        preparation.check_steps(self.folder, step_of(path) or 0, self.recipe)
        checkpoint = read_checkpoint(path, self.loop.layout, self._world)
        scalars = checkpoint.scalars
        preparation.check_data(self.folder, scalars.get("corpus"), self._fingerprint)
        earlier = scalars.get("recipe")  # config.toml may have been edited since
        preparation.check_unchanged(self.folder, earlier if isinstance(earlier, dict) else {}, self.recipe)
        self.loop.restore(checkpoint, path)
        if self._world.main:
            messages += preparation.repaired(self.folder, self.task.tokenizer)
        self._seconds = _number(scalars, "seconds", 0.0)
        self._seconds_logged = _number(scalars, "seconds_logged", self._seconds)
        index = self._world.broadcast(self.folder.index() if self._world.main else None)
        best, best_step = scalars.get("best_loss"), scalars.get("best_step")
        if index is not None and index.best is not None and isinstance(best, float) and isinstance(best_step, int):
            self._best, self._best_step = best, best_step
        self._saved = self.loop.done
        return [*messages, *self._world.broadcast(self._changed() if self._world.main else [])]

    def _changed(self) -> list[str]:
        """Records the recipe if steps remain; returns messages about its changes."""
        done, earlier = self.loop.done, check_resumable(self.folder, self.recipe)
        changed = changes(earlier, self.recipe)
        if done == self.recipe.training.steps:
            unused = f"; {changed} changes nothing" if changed else ""
            return [f"step {done} is the last of this recipe; raise training.steps to continue{unused}"]
        preparation.record_recipe(self.folder, self.recipe)
        messages = [f"resuming from step {done}{f' with {changed}' if changed else ''}"]
        before, after = (recipe.training.rate_at(done) for recipe in (earlier, self.recipe))
        if not math.isclose(before, after):
            last = earlier.training.rate_at(done - 1)
            messages.append(f"the learning rate goes from {last:.3g} to {after:.3g} at step {done + 1}")
        return messages

    def _found(self) -> tuple[Path | None, list[str]]:
        check_resumable(self.folder, self.recipe)
        if not self.folder.saved:
            furnish_run(self.folder, self.recipe, self.task.tokenizer)
            return None, ["no checkpoint had been saved; starting from step 0"]
        return sound_checkpoint(self.folder)

    def _stop(self, name: str, shown: Display) -> None:
        if not self.loop.done:
            self._event(f"stopped by {name} before the first step; nothing to save; start again with --resume", shown)
            return
        self._save(best=False)
        self._event(f"stopped by {name} after step {self.loop.done}; saved; continue with --resume", shown)

    def _event(self, message: str, shown: Display) -> None:
        self._metrics.write("event", self.loop.done, {"message": message})
        shown.say(message)


def validation_figures(evaluation: Evaluation) -> dict[str, float | None]:
    """The figures of a `"valid"` line in the metrics."""
    return {
        "loss": _finite(evaluation.loss),
        "perplexity": _finite(evaluation.perplexity),
        "accuracy": evaluation.accuracy,
        "last_accuracy": evaluation.last_accuracy,
        "sequence_accuracy": evaluation.sequence_accuracy,
        "residual": evaluation.residual.mean,
        "residual_p95": evaluation.residual.p95,
        "residual_worst": evaluation.residual.worst,
        "evaluations": evaluation.evaluations_per_solve,
        "unconverged": evaluation.unconverged,
    }


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None


def _number(scalars: Mapping[str, object], name: str, default: float) -> float:
    value = scalars.get(name)
    return float(value) if isinstance(value, int | float) else default


def train(
    recipe: Recipe | Path | str,
    *,
    resume: bool = False,
    console: Console | None = None,
    progress: Progress = UNWATCHED,
    trackers: Sequence[Tracker] = (),
) -> TrainingResult:
    """Prepares the text or the task, builds the model and trains it, with the processes that torchrun has started.

    Args:
        recipe: the whole recipe, or its file.
        resume: continue the run in the recipe's folder from its last checkpoint.
        console: where to show how training goes; nowhere when None.
        progress: receives the stages of preparing a text.
        trackers: receive each record of the metrics.

    Raises:
        RunInUse: another process writes the run.
        UserError: the text, the run folder or a checkpoint does not allow it.
    """
    instance(Recipe | Path | str, 'eq.read_recipe("demo"), or its name', recipe=recipe)
    recipe = checked(recipe) if isinstance(recipe, Recipe) else read_recipe(recipe)
    folder = RunFolder(recipe.run.folder)
    device = training_device(recipe.training.device)
    with joined(device) as world:
        if world.main:  # before what takes long
            again = resume or preparation.made_before(folder)
            preparation.check_startable(folder, again)
            if again:
                preparation.check_before_reading(folder, recipe)
        with world.main_first():
            task = opened(recipe.data, progress if world.main else UNWATCHED)
        seed_everything(recipe.training.seed)
        model = build_model(recipe, task.tokenizer.vocabulary_size)
        if recipe.training.initial_weights is not None and not (resume and folder.saved):
            load_trained(model, recipe.training.initial_weights)
        model.to(device)
        shown = Console(quiet=True) if console is None else console
        return Trainer(model, recipe, task, folder.path, shown, world, trackers).run(resume)
