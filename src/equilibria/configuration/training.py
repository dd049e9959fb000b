"""The `[training]` section of a recipe: batches, optimizer, schedule, averaging, intervals.

An option left out takes the default of the optimizer, schedule or averaging that is named; one that the named does
not have is an error.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from equilibria.configuration.options import foreign_options
from equilibria.configuration.values import Count, Fraction, Natural, NonNegative, Positive

Defaults = Mapping[str, Mapping[str, float | None]]

OPTIMIZER_OPTIONS: Defaults = {
    "adamw": {"weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95},
    "adam": {"weight_decay": 0.0, "beta1": 0.9, "beta2": 0.999},
    "radam": {"weight_decay": 0.0, "beta1": 0.9, "beta2": 0.999},
    "sgd": {"weight_decay": 0.0, "momentum": 0.0},
    "muon": {"weight_decay": 0.1, "momentum": 0.95, "beta1": 0.9, "beta2": 0.95},
}
"""Options that each optimizer takes, with their defaults."""

SCHEDULE_OPTIONS: Defaults = {
    "cosine": {"final_rate": 0.1},
    "linear": {"final_rate": 0.0},
    "inverse_square_root": {},
    "warmup_stable_decay": {"final_rate": 0.0, "decay_steps": None},
    "constant": {},
}
"""Options that each schedule takes beyond `warmup_steps`."""

AVERAGING_OPTIONS: Defaults = {
    "none": {},
    "exponential": {"averaging_decay": 0.999},
    "uniform": {"averaging_start": None, "averaging_patience": 5},
}
"""Options that each averaging of weights takes."""


@dataclass(frozen=True, kw_only=True)
class RatesRecipe:
    """Learning rates of parts of the model, as multiples of training.learning_rate; 0 keeps a part as it starts."""

    embedding: NonNegative = 1.0
    """Of the rows of tokens, and of an output matrix tied to them."""
    cell: NonNegative = 1.0
    """Of the matrices between embedding and softmax: the cell's, or those of a baseline's layers."""
    head: NonNegative = 1.0
    """Of the other matrices of embedding and softmax: an output layer, projections."""
    vectors: NonNegative = 1.0
    """Of biases, gains and norms, wherever they are."""


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """Batches, optimizer and intervals; an interval is counted in optimizer steps."""

    steps: Count = 2000
    """Optimizer steps in all."""
    batch_size: Count = 16
    """Rows of text in a batch."""
    segment_length: Count = 128
    """Tokens of each row per step."""
    accumulation: Count = 1
    """Batches whose gradients are averaged in one optimizer step."""
    optimizer: Literal["adamw", "adam", "radam", "sgd", "muon"] = "adamw"
    """What takes the steps; "muon" takes those of matrices, and AdamW the others."""
    learning_rate: Positive = 1e-3
    """Peak learning rate."""
    rates: Annotated[RatesRecipe, Parameter(group="training.rates")] = field(default_factory=RatesRecipe)
    """Those of parts of the model, as multiples of it."""
    weight_decay: NonNegative | None = None
    """Decay of the matrices, in adam and sgd as part of the gradient; left out: 0.1 for adamw and muon, else 0."""
    beta1: Fraction | None = None
    """Decay of the mean of gradients, but for sgd; left out: 0.9."""
    beta2: Fraction | None = None
    """Decay of the mean of squared gradients, but for sgd; left out: 0.95 for adamw and muon, else 0.999."""
    momentum: Fraction | None = None
    """For sgd and muon; left out: 0 and 0.95."""
    schedule: Literal["cosine", "linear", "inverse_square_root", "warmup_stable_decay", "constant"] = "cosine"
    """How the learning rate falls after its rise."""
    warmup_steps: Natural = 100
    """Steps over which the rate rises from 0 to its peak."""
    final_rate: NonNegative | None = None
    """Rate at the last step as a fraction of the peak; left out: 0.1 for cosine, 0 where the fall is linear."""
    decay_steps: Count | None = None
    """Steps over which warmup_stable_decay falls; left out: the last fifth of all."""
    averaging: Literal["none", "exponential", "uniform"] = "none"
    """Evaluate and keep the weights themselves, or an average over the steps."""
    averaging_decay: Fraction | None = None
    """Decay of the exponential average per step; left out: 0.999."""
    averaging_start: Natural | None = None
    """Step from which on the uniform average is taken; left out: averaging_patience decides."""
    averaging_patience: Count | None = None
    """The uniform average starts when validation is no better than it was more than so many evaluations ago; 5."""
    clip: Positive = 1.0
    """Largest norm of the whole gradient."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of matrix products in training; weights, states, residuals and everything solvers compute stay in float32."""
    compile: bool = False
    """Compile the cell with torch.compile, for which PyTorch needs a C++ compiler."""
    skipped_steps: Natural = 10
    """Steps in a row that may be skipped because loss or gradient is infinite or NaN, before the run ends."""
    evaluate_every: Count = 200
    """Interval between evaluations on validation text."""
    evaluate_tokens: Count | None = None
    """Validation tokens in these evaluations, at most; left out: all."""
    checkpoint_every: Count = 200
    """Interval between checkpoints."""
    checkpoints_kept: Count = 2
    """The last so many checkpoints are kept, and the best one beside them."""
    log_every: Count = 10
    """Interval between lines of metrics."""
    tensorboard: bool = False
    """Also write the metrics for TensorBoard, into the run's folder tensorboard; it needs the package tensorboard."""
    seed: Natural = 0
    """Seed of weights and dropout."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model is trained; auto: on CUDA where there is a device for every process, else on the CPU."""
    initial_weights: Path | None = None
    """A run or import whose best weights training starts from, or a .safetensors file; left out: drawn anew."""
    threads: Count | None = None
    """CPU threads; left out: what PyTorch chooses."""

    def option(self, name: str) -> float:
        """An option of the optimizer, the schedule or the averaging: as given, or its default.

        Raises:
            KeyError: the ones that are named have no such option, or none that has a default.
        """
        given = getattr(self, name)
        if given is not None:
            return given
        for selector, options in _SELECTORS.items():
            default = options[getattr(self, selector)].get(name)
            if default is not None:
                return default
        raise KeyError(name)


_SELECTORS = {"optimizer": OPTIMIZER_OPTIONS, "schedule": SCHEDULE_OPTIONS, "averaging": AVERAGING_OPTIONS}


def training_problems(training: TrainingRecipe) -> Iterator[str]:
    """Options that are set but belong to another optimizer, schedule or averaging; each line begins with a key."""
    for selector, options in _SELECTORS.items():
        yield from foreign_options("training", training, selector, options)
    if training.averaging_start is not None and training.averaging_patience is not None:
        yield "training.averaging_patience has no use beside training.averaging_start; leave one of them out"
