"""Training a language model: the loop, what it saves, what it shows."""

from equilibria.runs.trackers import Tracker
from equilibria.training.loop import TrainingLoop
from equilibria.training.randomness import seed_everything
from equilibria.training.trainer import Trainer, TrainingResult, train

__all__ = ["Tracker", "Trainer", "TrainingLoop", "TrainingResult", "seed_everything", "train"]
