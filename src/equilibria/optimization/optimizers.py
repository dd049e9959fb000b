"""Optimizers, under a schedule: PyTorch's own but for Muon on CPUs, each on what it is for.

What they have learned is kept by the names of the parameters, so that a checkpoint does not depend on their order.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from typing import Any, ClassVar

import torch
from torch import Tensor, nn, optim

from equilibria.errors import cause
from equilibria.models import TokenModel
from equilibria.optimization.muon import GramMuon
from equilibria.optimization.schedules import Schedule, scheduler
from equilibria.ranges import at_least, probability

Named = dict[str, nn.Parameter]
Group = dict[str, Any]
"""A parameter group of PyTorch's optimizers."""


@dataclass(frozen=True)
class ParameterGroups:
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

    def every(self) -> Named:
        """All of them."""
        return {**self.embedding, **self.cell, **self.head, **self.vectors}


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


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Learning rates of parts of the model, as multiples of the learning rate; 0 keeps a part as it starts.

    Args:
        embedding: of the rows of tokens, and of an output matrix tied to them.
        cell: of the matrices between embedding and softmax: the cell's, or those of a baseline's layers.
        head: of the other matrices of embedding and softmax: an output layer, projections.
        vectors: of biases, gains and norms, wherever they are.
    """

    embedding: float = 1.0
    cell: float = 1.0
    head: float = 1.0
    vectors: float = 1.0

    def __post_init__(self) -> None:
        at_least(0, **vars(self))


@dataclass(frozen=True, kw_only=True)
class Optimizer(ABC):
    """What takes the steps.

    Args:
        weight_decay: decay of the matrices of cell and head; rows of tokens and vectors have none.
    """

    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        at_least(0, weight_decay=self.weight_decay)
        probability(**{name: value for name, value in vars(self).items() if name != "weight_decay"})

    @abstractmethod
    def build(self, found: ParameterGroups, learning_rate: float, rates: Rates) -> tuple[optim.Optimizer, ...]:
        """PyTorch's optimizers, for parameters on their device, with their groups at the peak rates."""

    def state_bytes(self, found: ParameterGroups) -> int:
        """Bytes of what they keep once they have taken a step: two means, and the number of steps as a float32."""
        every = found.every()
        return 2 * _bytes(every) + 4 * len(every)

    def groups(self, found: ParameterGroups, learning_rate: float, rates: Rates) -> list[Group]:
        """PyTorch's parameter groups, one per role, as the rates and the decay differ."""
        return [
            _group(found.cell, rates.cell * learning_rate, self.weight_decay),
            _group(found.head, rates.head * learning_rate, self.weight_decay),
            _group(found.embedding, rates.embedding * learning_rate, 0.0),
            _group(found.vectors, rates.vectors * learning_rate, 0.0),
        ]


@dataclass(frozen=True, kw_only=True)
class _Adaptive(Optimizer):
    """One of PyTorch's with two means.

    Args:
        beta1: decay of the mean of gradients.
        beta2: decay of the mean of squared gradients.
    """

    beta1: float = 0.9
    beta2: float = 0.999

    _made: ClassVar[Callable[..., optim.Optimizer]]

    def build(self, found: ParameterGroups, learning_rate: float, rates: Rates) -> tuple[optim.Optimizer, ...]:
        return (self._made(self.groups(found, learning_rate, rates), betas=(self.beta1, self.beta2)),)


@dataclass(frozen=True, kw_only=True)
class AdamW(_Adaptive):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2017, arXiv:1711.05101)."""

    weight_decay: float = 0.1
    beta2: float = 0.95
    _made = staticmethod(partial(optim.AdamW, fused=True))


@dataclass(frozen=True, kw_only=True)
class Adam(_Adaptive):
    """Adam (Kingma and Ba 2014, arXiv:1412.6980); weight decay is part of the gradient."""

    _made = staticmethod(partial(optim.Adam, fused=True))


@dataclass(frozen=True, kw_only=True)
class RAdam(_Adaptive):
    """Rectified Adam (Liu et al. 2019, arXiv:1908.03265) with decoupled weight decay."""

    _made = staticmethod(partial(optim.RAdam, decoupled_weight_decay=True))


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """Stochastic gradient descent; weight decay is part of the gradient.

    Args:
        momentum: share of the old in the mean of gradients.
    """

    momentum: float = 0.0

    def build(self, found: ParameterGroups, learning_rate: float, rates: Rates) -> tuple[optim.Optimizer, ...]:
        return (optim.SGD(self.groups(found, learning_rate, rates), momentum=self.momentum),)

    def state_bytes(self, found: ParameterGroups) -> int:
        return _bytes(found.every()) if self.momentum else 0


@dataclass(frozen=True, kw_only=True)
class Muon(AdamW):
    """Muon (Jordan et al. 2024) for the matrices of the cell, its steps as large as AdamW's (Liu et al. 2025,
    arXiv:2502.16982), and AdamW for the rest.

    Args:
        momentum: of Muon: share of the old in the mean of gradients.
    """

    momentum: float = 0.95

    def build(self, found: ParameterGroups, learning_rate: float, rates: Rates) -> tuple[optim.Optimizer, ...]:
        hidden, others = taken_by_muon(found)
        muon = _group(hidden, rates.cell * learning_rate, self.weight_decay)
        return _muon([muon], self.momentum), *super().build(replace(found, cell=others), learning_rate, rates)

    def state_bytes(self, found: ParameterGroups) -> int:
        """One mean of the matrices, and AdamW's of the rest."""
        hidden, others = taken_by_muon(found)
        return _bytes(hidden) + super().state_bytes(replace(found, cell=others))


def _muon(groups: list[Group], momentum: float) -> optim.Optimizer:
    """For where the parameters are: both keep the same, so that a run can resume with one after the other.

    An accelerator's matrix units take bfloat16 several times faster than float32.
    """
    if any(matrix.device.type != "cpu" for group in groups for matrix in group["params"]):
        return optim.Muon(groups, momentum=momentum, adjust_lr_fn="match_rms_adamw")
    return GramMuon(groups, momentum=momentum)


def taken_by_muon(found: ParameterGroups) -> tuple[Named, Named]:
    """The cell's parameters that Muon is for, matrices of two dimensions, and its others."""
    hidden = {name: matrix for name, matrix in found.cell.items() if matrix.ndim == 2}
    return hidden, {name: matrix for name, matrix in found.cell.items() if name not in hidden}


def _group(parameters: Named, rate: float, decay: float) -> Group:
    return {"params": list(parameters.values()), "lr": rate, "weight_decay": decay}


def _bytes(parameters: Named) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters.values())


@dataclass(frozen=True)
class _Foreign(Optimizer):
    """Anyone's optimizer with its options; its weight decay is for the matrices of cell and head."""

    make: partial[optim.Optimizer]

    def __post_init__(self) -> None:
        """Tries a step: what an optimizer thinks of its options, it says as it is made or used."""
        if "lr" not in signature(self.make.func).parameters:
            raise ValueError(f"optimizer: {self.make.func.__name__} has no lr, which the schedule sets")
        try:
            self._tried()
        except Exception as problem:
            raise ValueError(f"optimizer: {cause(problem)}") from problem

    def _tried(self) -> tuple[optim.Optimizer, nn.Parameter]:
        """After a step of a small matrix."""
        small = nn.Parameter(torch.zeros(16, 16))
        small.grad = torch.zeros_like(small)
        optimizer = self.make([{"params": [small]}], lr=1e-3)
        optimizer.step()
        return optimizer, small

    def build(self, found: ParameterGroups, learning_rate: float, rates: Rates) -> tuple[optim.Optimizer, ...]:
        groups = self.groups(found, learning_rate, rates)
        for group in groups if "weight_decay" not in signature(self.make.func).parameters else ():
            del group["weight_decay"]
        return (self.make([group for group in groups if group["params"]], lr=learning_rate),)

    def state_bytes(self, found: ParameterGroups) -> int:
        """As much per element, and beside them, as it keeps of a small matrix."""
        optimizer, small = self._tried()
        kept, every = optimizer.state[small].values(), found.every()
        per_parameter = sum(part.nbytes for part in kept if not part.ndim)
        per_small = sum(part.nbytes for part in kept if part.ndim)
        return per_small * _bytes(every) // small.nbytes + per_parameter * len(every)


def adopted(optimizer: Optimizer | partial[optim.Optimizer]) -> Optimizer:
    """What takes the steps, also where it is somebody else's optimizer with its options."""
    if isinstance(optimizer, Optimizer):
        return optimizer
    decay = signature(optimizer).parameters.get("weight_decay")
    return _Foreign(make=optimizer, weight_decay=decay.default if decay else 0.0)


class ScheduledOptimizers:
    """Optimizers at the rates of a schedule.

    Args:
        model: already on its device.
        optimizer, schedule, steps, learning_rate, rates: as in a recipe.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | partial[optim.Optimizer],
        schedule: Schedule,
        steps: int,
        learning_rate: float,
        rates: Rates,
    ) -> None:
        self._parameters = dict(model.named_parameters())
        self._optimizers = adopted(optimizer).build(parameter_groups(model), learning_rate, rates)
        self._rate, self._schedule, self._steps = learning_rate, schedule, steps
        self._set(done=0)

    def _set(self, done: int) -> None:
        self._schedulers = [scheduler(optimizer, self._schedule, self._steps, done) for optimizer in self._optimizers]

    @property
    def learning_rate(self) -> float:
        """Of the next step, where no part of the model has a rate of its own."""
        return self._rate * self._schedule.factor(self._schedulers[0].last_epoch, self._steps)

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
        """Resumes from what `tensors` returned after `done` steps; the recipe's rates, decay and momentum stand.

        State of parameters that are frozen by now, or for a momentum that is 0 by now, is dropped.

        Raises:
            ValueError: something is missing, unknown or of another shape.
        """
        frozen = {name for name, parameter in self._parameters.items() if not parameter.requires_grad}
        unknown = {name: tensor for name, tensor in tensors.items() if name.partition(".")[2] not in frozen}
        for optimizer in self._optimizers:
            known = {name: number for number, (name, _) in enumerate(self._named(optimizer))}
            learned: dict[int, dict[str, Tensor]] = {}
            for kind, name in [tuple(full.split(".", 1)) for full in unknown]:
                if name in known:
                    tensor, expected = unknown.pop(f"{kind}.{name}"), self._parameters[name].shape
                    if tensor.ndim and tensor.shape != expected:
                        raise ValueError(f"{kind} of {name} is {tuple(tensor.shape)}, expected {tuple(expected)}")
                    learned.setdefault(known[name], {})[kind] = tensor
            kinds = {kind for state in learned.values() for kind in state}  # kept of every parameter with a gradient
            for number, state in learned.items():
                if missing := kinds - state.keys():
                    raise ValueError(f"{min(missing)} of {list(known)[number]} is missing")
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": learned if _remembers(optimizer) else {}, "param_groups": groups})
        if unknown:
            raise ValueError(f"{min(unknown)} is of another optimizer")
        self._set(done)

    def _named(self, optimizer: optim.Optimizer) -> list[tuple[str, nn.Parameter]]:
        names = {id(parameter): name for name, parameter in self._parameters.items()}
        ordered = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        return [(names[id(parameter)], parameter) for parameter in ordered]


def _remembers(optimizer: optim.Optimizer) -> bool:
    return not isinstance(optimizer, optim.SGD) or bool(optimizer.defaults["momentum"])
