"""Using a trained model: evaluating it, loading it."""

from equilibria.inference.evaluation import Evaluation, Spread, evaluate
from equilibria.inference.loading import LoadedRun, load, load_run, load_task
from equilibria.inference.run_folder import RunFolder

__all__ = ["Evaluation", "LoadedRun", "RunFolder", "Spread", "evaluate", "load", "load_run", "load_task"]
