"""Using a trained model: loading it, evaluating it."""

from equilibria.inference.effort import Effort
from equilibria.inference.evaluation import Evaluation, Spread, evaluate_model
from equilibria.inference.loading import LoadedRun, load, load_run
from equilibria.inference.run_evaluation import Passes, RunEvaluation, evaluate

__all__ = [
    "Effort",
    "Evaluation",
    "LoadedRun",
    "Passes",
    "RunEvaluation",
    "Spread",
    "evaluate",
    "evaluate_model",
    "load",
    "load_run",
]
