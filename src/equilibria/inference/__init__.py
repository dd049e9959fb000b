"""Using a trained model: evaluating it, loading it."""

from equilibria.inference.evaluation import Evaluation, Spread, evaluate
from equilibria.inference.loading import LoadedRun, load, load_run, load_task

__all__ = ["Evaluation", "LoadedRun", "Spread", "evaluate", "load", "load_run", "load_task"]
