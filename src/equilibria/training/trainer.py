"""A training run: the loop, with its folder, its log, its display and what may interrupt it."""

import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console

from equilibria.configuration.recipe import Recipe
from equilibria.data.task import Task
from equilibria.depths import DepthSchedule
from equilibria.errors import UserError
from equilibria.inference.evaluation import Evaluation, evaluate, perplexity
from equilibria.inference.run_folder import RunFolder
from equilibria.models import TokenModel
from equilibria.training.checkpoint import read_checkpoint, save_checkpoint
from equilibria.training.display import Display, display
from equilibria.training.interruption import Interruption
from equilibria.training.loop import TrainingLoop
from equilibria.training.metrics import MetricsWriter
from equilibria.training.preparation import check_resumable, create_run, furnish_run, record_recipe
from equilibria.training.rank import is_first_process
from equilibria.training.statistics import StepSummary
from equilibria.training.trackers import TensorBoard, Tracker, require_tensorboard


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
        tokens_per_second: predicted tokens of this process per second of training; 0.0 without a step.
    """

    folder: Path
    step: int
    interrupted: int | None
    validation: Evaluation | None
    best_loss: float | None
    seconds: float
    tokens_per_second: float


class Trainer:
    """Trains a model as a recipe says, into a run folder.

    Args:
        model: freshly built, on the device it shall be trained on; call `seed_everything` before building it.
        recipe: the whole recipe; it is written into the folder.
        task: the prepared text, or whatever else there is to learn.
        run_folder: where everything goes.
        console: where to show progress.
        depths: the model's depth in each step; the model's own throughout when None.
        trackers: get each record of the metrics; closed when `run` ends.

    Raises:
        UserError: the text has token ids that the model has not, or is too short for the batch; or a package that the
            recipe needs is missing.
    """

    def __init__(
        self,
        model: TokenModel,
        recipe: Recipe,
        task: Task,
        run_folder: Path,
        console: Console,
        depths: DepthSchedule | None = None,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self.model = model
        self.recipe = recipe
        self.task = task
        self.folder = RunFolder(run_folder)
        self._console = console
        self._trackers = trackers
        if recipe.training.tensorboard:
            require_tensorboard()
        training = recipe.training
        task.check(model.embedding.vocabulary_size)
        batches = task.training(training.batch_size * training.accumulation, training.segment_length)
        self.loop = TrainingLoop(model, recipe.training, batches, depths)
        self._seconds = 0.0  # spent in steps, by the whole run
        self._seconds_logged = 0.0  # of those, what the last line has counted
        self._best: float | None = None
        self._saved: int | None = None  # the step of the last checkpoint
        self._validation: Evaluation | None = None

    def run(self, resume: bool = False) -> TrainingResult:
        """Trains to the end of the recipe, or until a signal; either way the last state is saved.

        A run that is killed outright goes on from its last checkpoint with `resume`; on the CPU, the weights
        it ends with are those of a run that was never killed, bit for bit.

        Args:
            resume: continue the run in the folder; otherwise the folder must not exist or be empty.

        Raises:
            UserError: the folder, a checkpoint or the disk does not allow it, or the loss is no longer
                finite; what was saved stays.
        """
        if self.recipe.training.threads is not None:
            torch.set_num_threads(self.recipe.training.threads)
        torch.manual_seed(self.recipe.training.seed)
        message = None
        if resume:
            message = self._resume()
        else:
            create_run(self.folder, self.recipe, self.task.tokenizer)
        first, seconds = self.loop.done, self._seconds
        self._metrics = MetricsWriter(self.folder.metrics, first, self._all_trackers(first))
        shown = display(self._console, self.recipe.run.name, self.recipe.training.steps, first)
        try:
            with Interruption() as interruption, shown:
                if message is not None:
                    self._event(message, shown)
                self._train_until_done(interruption, shown)
        finally:
            self._metrics.close()
        taken = self._seconds - seconds
        return TrainingResult(
            folder=self.folder.path,
            step=self.loop.done,
            interrupted=interruption.signal,
            validation=self._validation,
            best_loss=self._best,
            seconds=self._seconds,
            tokens_per_second=self.loop.tokens / taken if taken else 0.0,
        )

    def _all_trackers(self, first: int) -> list[Tracker]:
        """Those that were given and those of the recipe; none but in the first process of a distributed run."""
        if not is_first_process():
            return []
        wanted = self.recipe.training.tensorboard
        return [*self._trackers, *([TensorBoard(self.folder.tensorboard, first)] if wanted else [])]

    def _train_until_done(self, interruption: Interruption, shown: Display) -> None:
        training = self.recipe.training
        while self.loop.done < training.steps and interruption.signal is None:
            self._timed_step()
            step, last = self.loop.done, self.loop.done == training.steps
            shown.advance(step)
            if last or step % training.log_every == 0:
                self._log(shown)
            better = (last or step % training.evaluate_every == 0) and self._evaluate(shown)
            if last or better or step % training.checkpoint_every == 0:
                self._save(better)
        if interruption.signal is not None:
            self._stop(signal.Signals(interruption.signal).name, shown)

    def _timed_step(self) -> None:
        start = time.perf_counter()
        self.loop.step()
        self._seconds += time.perf_counter() - start

    def _summary(self) -> StepSummary | None:
        """Figures since the last line; waits for the device, which is training time."""
        start = time.perf_counter()
        summary = self.loop.statistics.summary()
        self._seconds += time.perf_counter() - start
        if summary is not None and not summary.finite:
            kept = f"the checkpoint of step {self._saved} stays" if self._saved else "no checkpoint had been saved"
            raise UserError(
                f"the loss or its gradient became infinite or NaN by step {self.loop.done} "
                f"(loss {summary.loss}, gradient norm {summary.gradient_norm}); "
                f"lower training.learning_rate or training.clip; {kept}"
            )
        return summary

    def _log(self, shown: Display) -> None:
        summary = self._summary()
        if summary is None:
            return
        taken = self._seconds - self._seconds_logged
        figures = {
            "loss": summary.loss,
            "perplexity": _finite(perplexity(summary.loss)),
            "evaluations": summary.evaluations,
            "residual": summary.residual,
            "residual_worst": summary.residual_worst,
            "tokens_per_second": summary.tokens / taken if taken else None,
            "learning_rate": self.loop.learning_rate,
            "gradient_norm": summary.gradient_norm,
            "seconds": self._seconds,
        }
        self._metrics.write("train", self.loop.done, figures)
        shown.train(self.loop.done, figures)
        self.loop.statistics.reset()
        self._seconds_logged = self._seconds

    def _evaluate(self, shown: Display) -> bool:
        """Evaluates on validation text; returns whether this is the best loss so far."""
        self._summary()  # a model that is no longer finite is not worth evaluating
        training, valid = self.recipe.training, self.task.split("valid")
        sizes = training.batch_size, training.segment_length
        result = evaluate(self.loop.evaluated, valid, *sizes, max_tokens=training.evaluate_tokens)
        self._validation = result
        self.loop.validated(result.loss)
        figures = {
            **validation_figures(result),
            "seconds": self._seconds,
            "evaluation_seconds": result.seconds,
        }
        self._metrics.write("valid", self.loop.done, figures)
        shown.valid(self.loop.done, figures)
        better = self._best is None or result.loss < self._best
        if better:
            self._best = result.loss
        return better

    def _save(self, best: bool) -> None:
        if self._saved == self.loop.done:
            return
        self._summary()  # weights that are no longer finite must not become the last checkpoint
        checkpoint = self.loop.checkpoint()
        scalars = {
            **checkpoint.scalars,
            "seconds": self._seconds,
            "seconds_logged": self._seconds_logged,
            "best_loss": self._best,
            "corpus": self.task.fingerprint,
        }
        save_checkpoint(self.folder, self.loop.done, replace(checkpoint, scalars=scalars), best)
        self._saved = self.loop.done

    def _resume(self) -> str:
        """Goes on from the last checkpoint, or from the start if there is none; returns what to say."""
        check_resumable(self.folder, self.recipe)
        if self.folder.index() is None:
            furnish_run(self.folder, self.recipe, self.task.tokenizer)
            return "no checkpoint had been saved; starting from step 0"
        path = self.folder.checkpoint("last")
        checkpoint = read_checkpoint(path)
        if checkpoint.scalars.get("corpus") != self.task.fingerprint:
            raise UserError(
                f"the text or its tokenizer is not the one that {self.folder.path} was trained on; "
                f"resume with the same data, or start a new run"
            )
        self.loop.restore(checkpoint, path)
        record_recipe(self.folder, self.recipe)
        self._seconds = _number(checkpoint.scalars, "seconds", 0.0)
        self._seconds_logged = _number(checkpoint.scalars, "seconds_logged", self._seconds)
        best = checkpoint.scalars.get("best_loss")
        self._best = best if isinstance(best, float) else None
        self._saved = self.loop.done
        if self.loop.done >= self.recipe.training.steps:
            return f"step {self.loop.done} is the last of this recipe; raise training.steps to go on"
        return f"resuming from step {self.loop.done}"

    def _stop(self, name: str, shown: Display) -> None:
        if self.loop.done:
            self._save(best=False)
        self._event(f"stopped by {name} after step {self.loop.done}; saved, continue with --resume", shown)

    def _event(self, message: str, shown: Display) -> None:
        self._metrics.write("event", self.loop.done, {"message": message})
        shown.say(message)


def validation_figures(evaluation: Evaluation) -> dict[str, float | None]:
    """The figures of a `"valid"` line in the metrics."""
    return {
        "loss": _finite(evaluation.loss),
        "perplexity": _finite(evaluation.perplexity),
        "accuracy": evaluation.accuracy,
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
