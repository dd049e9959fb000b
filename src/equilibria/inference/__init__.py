"""Using a trained model: loading it, evaluating it, writing text with it."""

from equilibria.inference.effort import Effort
from equilibria.inference.evaluation import Evaluation, Spread, evaluate_model
from equilibria.inference.generating import Sample, generate
from equilibria.inference.loading import LoadedRun, load, load_run
from equilibria.inference.run_evaluation import Passes, RunEvaluation, evaluate

__all__ = [
    "Effort",
    "Evaluation",
    "LoadedRun",
    "Passes",
    "RunEvaluation",
    "Sample",
    "Spread",
    "evaluate",
    "evaluate_model",
    "generate",
    "load",
    "load_run",
]
