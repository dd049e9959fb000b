"""Tensors in safetensors files: read with errors a person can act on, and put into a model."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from equilibria.errors import UserError


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU.

    Raises:
        UserError: the file is missing, truncated or of another format.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; choose another checkpoint or restore the file")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as problem:
        raise UserError(
            f"{path} is damaged or truncated ({problem}); choose another checkpoint or restore the file"
        ) from problem


def distinct_state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers, each once under its first name (tied weights have several)."""
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            state[name] = tensor
    return state


def fill(targets: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copies `tensors` into `targets` in place, name by name, once every name, shape and type has been checked.

    Floating-point numbers of one precision become those of another; no other type becomes another.

    Args:
        targets: where to write.
        tensors: what was read.
        path: the file it was read from, for messages.

    Raises:
        UserError: a name is missing or unknown, or a shape or a type differs; nothing has been written then.
    """
    for name, target in targets.items():
        if name not in tensors:
            raise UserError(f"{path} has no tensor {name}; it was saved by another kind of model")
        if tensors[name].shape != target.shape:
            raise UserError(
                f"{path} is of another shape: {name} is {tuple(tensors[name].shape)} in the file, "
                f"{tuple(target.shape)} in the model; use the recipe it was trained with"
            )
        if not _becomes(tensors[name], target):
            raise UserError(
                f"{path} has {name} as {tensors[name].dtype}, the model as {target.dtype}; it holds something else "
                f"than this model's weights"
            )
    for name in tensors:
        if name not in targets:
            raise UserError(f"{path} has a tensor {name} that this model lacks; use the recipe it was trained with")
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(tensors[name])


def _becomes(tensor: Tensor, target: Tensor) -> bool:
    return tensor.dtype == target.dtype or (tensor.is_floating_point() and target.is_floating_point())


def load_weights(model: nn.Module, path: Path) -> None:
    """Reads a model's weights from a safetensors file into `model`.

    Raises:
        UserError: the file is missing, truncated or of another shape; the model is unchanged then.
    """
    fill(distinct_state(model), read_tensors(path), path)
