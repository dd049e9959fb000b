"""The optimizers of a recipe, under its schedule: PyTorch's own but for Muon on CPUs, each on what it is for.

What they have learned is kept by the names of the parameters, so that a checkpoint does not depend on their order.
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
class Roles:
    """Trainable parameters by name, sorted by what they are.

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


def roles(model: nn.Module) -> Roles:
    """The trainable parameters of a model, each once.

    A vector may have several dimensions: a bias per head, or the gains of normalised weights, `(rows, 1)`.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag)}
    embeddings = [module.embedding for module in model.modules() if isinstance(module, TokenModel)]
    outer = {id(parameter) for embedding in embeddings for parameter in embedding.parameters()}
    found = Roles({}, {}, {}, {})
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
    """What takes the steps of a recipe, with weight decay on the matrices of cell and head alone.

    AdamW (Loshchilov and Hutter 2017, arXiv:1711.05101), Adam (Kingma and Ba 2014, arXiv:1412.6980), RAdam with
    decoupled decay (Liu et al. 2019, arXiv:1908.03265), SGD, or Muon (Jordan et al. 2024) for the matrices of the
    cell, its steps as large as AdamW's (Liu et al. 2025, arXiv:2502.16982), and AdamW for the rest.

    Args:
        model: already on its device.
        recipe: the optimizer, its peak learning rates and its options.
    """
    found = roles(model)
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
    """For where the parameters are: both keep the same, so that a run goes on with one where it stopped with the other.

    An accelerator's matrix units take bfloat16 several times faster than float32.
    """
    if any(matrix.device.type != "cpu" for group in groups for matrix in group["params"]):
        return Muon(groups, momentum=momentum, adjust_lr_fn="match_rms_adamw")
    return GramMuon(groups, momentum=momentum)


def taken_by_muon(found: Roles) -> tuple[Named, Named]:
    """The cell's parameters that Muon is for, matrices of two dimensions, and its others."""
    hidden = {name: matrix for name, matrix in found.cell.items() if matrix.ndim == 2}
    return hidden, {name: matrix for name, matrix in found.cell.items() if name not in hidden}


def _groups(found: Roles, recipe: TrainingRecipe) -> list[dict[str, Any]]:
    """A group per role, as the rates and the decay differ."""
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
    """Bytes of what the optimizers of a recipe keep once they have taken a step, on whatever device a model is."""
    found = roles(model)
    every = {**found.embedding, **found.cell, **found.head, **found.vectors}
    by_muon = taken_by_muon(found)[0] if recipe.optimizer == "muon" else {}
    momentum = _bytes(by_muon)
    others = {name: parameter for name, parameter in every.items() if name not in by_muon}
    if recipe.optimizer == "sgd":
        return _bytes(others) if recipe.option("momentum") else 0
    return momentum + 2 * _bytes(others) + 4 * len(others)  # two means, and the number of steps as a float32


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
        """Of the next step, where no part of the model has a rate of its own."""
        return self._rate * self._schedule.factor(self._schedulers[0].last_epoch)

    def step(self) -> None:
        """Takes a step along the gradients, clears them and goes on to the next rate."""
        for optimizer, schedule in zip(self._optimizers, self._schedulers, strict=True):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()

    def skip(self, done: int) -> None:
        """Clears the gradients and goes on to the rate that follows `done` steps."""
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        self._set(done)

    def tensors(self) -> dict[str, Tensor]:
        """What the optimizers have learned, as `{kind}.{name of the parameter}`."""
        return {
            f"{kind}.{name}": tensor
            for optimizer in self._optimizers
            for name, parameter in self._named(optimizer)
            for kind, tensor in optimizer.state.get(parameter, {}).items()
        }

    def restore(self, tensors: Mapping[str, Tensor], done: int) -> None:
        """Goes on from a checkpoint; the recipe's rates, decay and momentum stand.

        What was learned of parameters that are frozen by now, or for a momentum that is 0 by now, is left behind.

        Args:
            tensors: what `tensors` returned.
            done: steps finished.

        Raises:
            ValueError: something is missing, unknown or of another shape.
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
            raise ValueError(f"{min(unknown)} is of another optimizer")
        self._set(done)

    def _named(self, optimizer: Optimizer) -> list[tuple[str, nn.Parameter]]:
        """An optimizer's parameters in the order in which it counts them."""
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
    """What an optimizer keeps for a parameter, where it keeps anything."""
    return ("momentum_buffer",) if isinstance(optimizer, SGD | Muon | GramMuon) else ("step", "exp_avg", "exp_avg_sq")


def _remembers(optimizer: Optimizer) -> bool:
    """Whether an optimizer keeps anything."""
    return not isinstance(optimizer, SGD) or bool(optimizer.defaults["momentum"])
