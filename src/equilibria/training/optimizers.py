"""The optimizers of a recipe and its schedule: PyTorch's own, except Muon on CPUs.

Their state is stored by parameter name, so that a checkpoint does not depend on the order of parameters.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Muon, Optimizer, RAdam

from equilibria.configuration.training import TrainingRecipe
from equilibria.models import TokenModel
from equilibria.training.muon import GramMuon
from equilibria.training.schedules import build_schedule, scheduler

Named = dict[str, nn.Parameter]


@dataclass(frozen=True)
class ParameterGroups:
    """Trainable parameters by name, grouped by their role.

    Attributes:
        embedding: rows of tokens, and an output matrix tied to them; with decay, rare words' rows would shrink at
            every step that does not mention them.
        cell: what maps features to features between embedding and softmax; weight decay shrinks them.
        head: the same in the embedding and its softmax: an output layer, projections.
        vectors: biases, gains and norms: a scale has no reason to be near zero.
    """

    embedding: Named
    cell: Named
    head: Named
    vectors: Named


def parameter_groups(model: nn.Module) -> ParameterGroups:
    """The trainable parameters of a model, each once.

    A vector may have several dimensions: a bias per head, or the gains of normalised weights, `(rows, 1)`.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag)}
    embeddings = [module.embedding for module in model.modules() if isinstance(module, TokenModel)]
    outer = {id(parameter) for embedding in embeddings for parameter in embedding.parameters()}
    found = ParameterGroups({}, {}, {}, {})
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in tables:
            found.embedding[name] = parameter
        elif name.endswith("bias") or sum(size > 1 for size in parameter.shape) < 2:
            found.vectors[name] = parameter
        elif id(parameter) in outer:
            found.head[name] = parameter
        else:
            found.cell[name] = parameter
    return found


def build_optimizers(model: nn.Module, recipe: TrainingRecipe) -> tuple[Optimizer, ...]:
    """The optimizers of a recipe; weight decay acts on the matrices of cell and head only.

    AdamW (Loshchilov and Hutter 2017, arXiv:1711.05101), Adam (Kingma and Ba 2014, arXiv:1412.6980), RAdam with
    decoupled decay (Liu et al. 2019, arXiv:1908.03265), SGD, or Muon (Jordan et al. 2024) for the matrices of the
    cell, its steps as large as AdamW's (Liu et al. 2025, arXiv:2502.16982), and AdamW for the rest.

    Args:
        model: already on its device.
        recipe: the optimizer, its peak learning rates and its options.
    """
    found = parameter_groups(model)
    match recipe.optimizer:
        case "adamw":
            return (AdamW(_groups(found, recipe), betas=_betas(recipe), fused=True),)
        case "adam":
            return (Adam(_groups(found, recipe), betas=_betas(recipe), fused=True),)
        case "radam":
            return (RAdam(_groups(found, recipe), betas=_betas(recipe), decoupled_weight_decay=True),)
        case "sgd":
            return (SGD(_groups(found, recipe), momentum=recipe.option("momentum")),)
        case "muon":
            hidden, others = taken_by_muon(found)
            rest = _groups(replace(found, cell=others), recipe)
            groups = [_group(hidden, recipe.rates.cell, recipe.option("weight_decay"), recipe)]
            return _muon(groups, recipe.option("momentum")), AdamW(rest, betas=_betas(recipe), fused=True)


def _muon(groups: list[dict[str, Any]], momentum: float) -> Optimizer:
    """Muon for the parameters' device. Both kinds keep the same state, so a run can switch between them.

    An accelerator's matrix units take bfloat16 several times faster than float32.
    """
    if any(matrix.device.type != "cpu" for group in groups for matrix in group["params"]):
        return Muon(groups, momentum=momentum, adjust_lr_fn="match_rms_adamw")
    return GramMuon(groups, momentum=momentum)


def taken_by_muon(found: ParameterGroups) -> tuple[Named, Named]:
    """The cell's parameters that Muon updates, matrices of two dimensions, and the others."""
    hidden = {name: matrix for name, matrix in found.cell.items() if matrix.ndim == 2}
    return hidden, {name: matrix for name, matrix in found.cell.items() if name not in hidden}


def _groups(found: ParameterGroups, recipe: TrainingRecipe) -> list[dict[str, Any]]:
    """One group per role, since rates and decay differ."""
    rates, decay = recipe.rates, recipe.option("weight_decay")
    return [
        _group(found.cell, rates.cell, decay, recipe),
        _group(found.head, rates.head, decay, recipe),
        _group(found.embedding, rates.embedding, 0.0, recipe),
        _group(found.vectors, rates.vectors, 0.0, recipe),
    ]


def _group(parameters: Named, rate: float, decay: float, recipe: TrainingRecipe) -> dict[str, Any]:
    return {"params": list(parameters.values()), "lr": rate * recipe.learning_rate, "weight_decay": decay}


def _betas(recipe: TrainingRecipe) -> tuple[float, float]:
    return recipe.option("beta1"), recipe.option("beta2")


def state_bytes(model: nn.Module, recipe: TrainingRecipe) -> int:
    """Bytes of the state of a recipe's optimizers after their first step; the model may be on any device."""
    found = parameter_groups(model)
    every = {**found.embedding, **found.cell, **found.head, **found.vectors}
    by_muon = taken_by_muon(found)[0] if recipe.optimizer == "muon" else {}
    momentum = _bytes(by_muon)
    others = {name: parameter for name, parameter in every.items() if name not in by_muon}
    if recipe.optimizer == "sgd":
        return _bytes(others) if recipe.option("momentum") else 0
    return momentum + 2 * _bytes(others) + 4 * len(others)  # two moments, and the number of steps as a float32


def _bytes(parameters: Named) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters.values())


class ScheduledOptimizers:
    """The optimizers of a recipe at the rates of its schedule.

    Args:
        model: already on its device.
        recipe: optimizer and schedule.
    """

    def __init__(self, model: nn.Module, recipe: TrainingRecipe) -> None:
        self._parameters = dict(model.named_parameters())
        self._optimizers = build_optimizers(model, recipe)
        self._rate, self._schedule = recipe.learning_rate, build_schedule(recipe)
        self._set(done=0)

    def _set(self, done: int) -> None:
        self._schedulers = [scheduler(optimizer, self._schedule, done) for optimizer in self._optimizers]

    @property
    def learning_rate(self) -> float:
        """Of the next step, for parts of the model without a rate of their own."""
        return self._rate * self._schedule.factor(self._schedulers[0].last_epoch)

    def step(self) -> None:
        """Takes a step along the gradients, clears them and moves on to the next rate."""
        for optimizer, schedule in zip(self._optimizers, self._schedulers, strict=True):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()

    def skip(self, done: int) -> None:
        """Clears the gradients and moves on to the rate after `done` steps."""
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        self._set(done)

    def tensors(self) -> dict[str, Tensor]:
        """The state of the optimizers, as `{kind}.{name of the parameter}`."""
        return {
            f"{kind}.{name}": tensor
            for optimizer in self._optimizers
            for name, parameter in self._named(optimizer)
            for kind, tensor in optimizer.state.get(parameter, {}).items()
        }

    def restore(self, tensors: Mapping[str, Tensor], done: int) -> None:
        """Restores the state from a checkpoint; rates, decay and momentum are those of the recipe.

        State of parameters that are frozen now, or of a momentum that is 0 now, is dropped.

        Args:
            tensors: what `tensors` returned.
            done: steps finished.

        Raises:
            ValueError: state is missing, unknown or of another shape.
        """
        frozen = {name for name, parameter in self._parameters.items() if not parameter.requires_grad}
        unknown = {name: tensor for name, tensor in tensors.items() if name.partition(".")[2] not in frozen}
        for optimizer in self._optimizers:
            state = {}
            for number, (name, _) in enumerate(self._named(optimizer)):
                found = {kind: unknown.pop(f"{kind}.{name}", None) for kind in _kinds(optimizer)}
                learned = any(tensor is not None for tensor in found.values())  # not before the first gradient
                if learned and _remembers(optimizer):
                    state[number] = {kind: self._checked(kind, name, tensor) for kind, tensor in found.items()}
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": state, "param_groups": groups})
        if unknown:
            raise ValueError(f"{min(unknown)} belongs to another optimizer")
        self._set(done)

    def _named(self, optimizer: Optimizer) -> list[tuple[str, nn.Parameter]]:
        """An optimizer's parameters in its own order."""
        names = {id(parameter): name for name, parameter in self._parameters.items()}
        ordered = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        return [(names[id(parameter)], parameter) for parameter in ordered]

    def _checked(self, kind: str, name: str, tensor: Tensor | None) -> Tensor:
        if tensor is None:
            raise ValueError(f"{kind} of {name} is missing")
        expected = self._parameters[name].shape
        if tensor.ndim and tensor.shape != expected:
            raise ValueError(f"{kind} of {name} is {tuple(tensor.shape)}, expected {tuple(expected)}")
        return tensor


def _kinds(optimizer: Optimizer) -> tuple[str, ...]:
    """The names of an optimizer's state for a parameter, if it has any."""
    return ("momentum_buffer",) if isinstance(optimizer, SGD | Muon | GramMuon) else ("step", "exp_avg", "exp_avg_sq")


def _remembers(optimizer: Optimizer) -> bool:
    """Whether an optimizer has state."""
    return not isinstance(optimizer, SGD) or bool(optimizer.defaults["momentum"])
