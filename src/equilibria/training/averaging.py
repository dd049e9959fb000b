"""Averages of the weights over the steps: evaluated and kept instead of the weights that training goes on from."""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from equilibria.configuration.training import TrainingRecipe
from equilibria.inference.weights import distinct_state, fill
from equilibria.models import TokenModel


class WeightAverage:
    """No average, an exponential one of all steps, or a uniform one from some step on.

    A uniform average without a first step starts when validation stops improving: when a loss is above the least of
    those more than `averaging_patience` evaluations back (non-monotonically triggered averaging of SGD: Merity,
    Keskar and Socher 2017, arXiv:1708.02182).

    Args:
        model: the one in training.
        recipe: the averaging and its options.
    """

    def __init__(self, model: TokenModel, recipe: TrainingRecipe) -> None:
        self._model = model
        self._recipe = recipe
        self._losses: list[float] = []
        self._started = recipe.averaging == "exponential"
        match recipe.averaging:
            case "none":
                self._averaged = None
            case "exponential":
                update = get_ema_multi_avg_fn(recipe.option("averaging_decay"))
                self._averaged = AveragedModel(model, multi_avg_fn=update)
            case "uniform":
                self._averaged = AveragedModel(model)

    @property
    def evaluated(self) -> TokenModel:
        """The averaged model once there is one, else the one in training."""
        if self._averaged is None or not self._averaged.n_averaged:
            return self._model
        return cast(TokenModel, self._averaged.module)

    def update(self, done: int) -> None:
        """Takes the weights in after a step; `done` steps are finished."""
        start = self._recipe.averaging_start
        self._started |= start is not None and done > start
        if self._averaged is not None and self._started:
            self._averaged.update_parameters(self._model)

    def validated(self, loss: float) -> None:
        """Takes note of a validation loss."""
        if self._recipe.averaging != "uniform" or self._recipe.averaging_start is not None:
            return
        earlier = self._losses[: -int(self._recipe.option("averaging_patience"))]
        self._started |= bool(earlier) and loss > min(earlier)
        self._losses.append(loss)

    @property
    def module(self) -> nn.Module | None:
        """The copy that holds the average; None where nothing is averaged."""
        return None if self._averaged is None else self._averaged.module

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint: the average so far, and what says how it goes on."""
        if self._averaged is None:
            return {}
        averaged = distinct_state(self._averaged.module) if self._averaged.n_averaged else {}
        losses, started = torch.tensor(self._losses, dtype=torch.float64), torch.tensor(self._started)
        weights = {f"weights.{name}": tensor for name, tensor in averaged.items()}
        return {"count": self._averaged.n_averaged, "started": started, "losses": losses, **weights}

    def restore(self, tensors: Mapping[str, Tensor], path: Path) -> None:
        """Goes on from a checkpoint.

        Args:
            tensors: what `tensors` returned.
            path: the checkpoint's folder, for messages.

        Raises:
            KeyError: something is missing.
            UserError: the weights are of another model.
        """
        if self._averaged is None:
            return
        prefix = "weights."
        weights = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        if weights:
            fill(distinct_state(self._averaged.module), weights, path)
        self._averaged.n_averaged.copy_(tensors["count"])
        self._started = bool(tensors["started"])
        self._losses = tensors["losses"].tolist()
