"""The average of the weights in a run: evaluated and kept instead of the weights in training."""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from equilibria.models import TokenModel
from equilibria.optimization import Averaging
from equilibria.runs.weights import distinct_state, fill


class WeightAverage:
    """The weights of a model in training, or an average of them from the step on at which it begins."""

    def __init__(self, model: TokenModel, averaging: Averaging | None) -> None:
        self._model, self._averaging = model, averaging
        self._losses: list[float] = []
        self._started = False
        self._averaged = None if averaging is None else averaging.of(model)

    @property
    def evaluated(self) -> TokenModel:
        """The averaged model once there is one, else the one in training."""
        if self._averaged is None or not self._averaged.n_averaged:
            return self._model
        return cast(TokenModel, self._averaged.module)

    def update(self, done: int) -> None:
        """Takes the weights in after a step; `done` steps are finished."""
        if self._averaged is None or self._averaging is None:
            return
        self._started = self._started or self._averaging.begins(done, self._losses)
        if self._started:
            self._averaged.update_parameters(self._model)

    def validated(self, loss: float) -> None:
        """Takes note of a validation loss."""
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
        """Resumes from what `tensors` returned, read from `path`.

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
