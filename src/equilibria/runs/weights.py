"""Tensors in safetensors files: read with errors a person can act on, and put into a model."""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from equilibria.errors import UserError
from equilibria.files.formats import is_file_name, read_json

Content = TypeVar("Content")
Model = TypeVar("Model", bound=nn.Module)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU.

    Raises:
        UserError: the file is missing, truncated or of another format.
    """
    if not os.path.isfile(path):  # which a name that is too long for a file is not either
        raise UserError(f"{path} is missing; choose another checkpoint or restore the file")
    try:
        return load_file(path)
    # A KeyError for a type that PyTorch lacks, a RuntimeError for a file that is replaced while it is opened.
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as problem:
        raise UserError(
            f"{path} is damaged or truncated ({problem}); choose another checkpoint or restore the file"
        ) from problem


def shards(index: Path) -> list[str]:
    """The names of the files that an index in Hugging Face's layout spreads tensors over, each once.

    Raises:
        UserError: the index is missing or damaged, is empty, or names something outside its folder.
    """
    mapped = read_json(index, dict).get("weight_map")
    if not isinstance(mapped, dict) or not mapped:
        raise UserError(f"{index} is damaged: it has no table weight_map with an entry; restore it")
    for name in mapped.values():
        if not is_file_name(name):
            raise UserError(f"{index} is damaged: weight_map has {name!r:.80}, expected names of files beside it")
    return sorted(set(mapped.values()))


def united(parts: Iterable[tuple[Path, Mapping[str, Content]]]) -> dict[str, Content]:
    """What several files hold by name.

    Raises:
        UserError: two have the same name.
    """
    whole: dict[str, Content] = {}
    for path, part in parts:
        for name, value in part.items():
            if name in whole:
                raise UserError(f"{path} has {name} a second time; restore the files as they were saved")
            whole[name] = value
    return whole


def distinct_state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers, each once under its first name (tied weights have several)."""
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            state[name] = tensor
    return state


def build_filled(build: Callable[[], Model], tensors: Mapping[str, Tensor], path: Path) -> Model:
    """A model with weights that were read from `path`; takes no memory before their sizes have been compared.

    Raises:
        UserError: as `build`; a name is missing or unknown, a shape differs, or a number is not finite.
    """
    try:
        with torch.device("meta"):
            sizes = distinct_state(build())
    except (RuntimeError, TypeError) as problem:  # PyTorch's for sizes that no tensor can have
        raise UserError(f"{path} is not of the model that its recipe describes: no tensor has its sizes") from problem
    _compare(sizes, tensors, path)
    model = build()
    fill(distinct_state(model), tensors, path)
    return model


def fill(targets: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copies `tensors`, read from `path`, into `targets` in place, once every name, shape, type and number is checked.

    The precision of floating-point numbers may differ; no other type becomes another.

    Raises:
        UserError: a name is missing or unknown, a shape or a type differs, or a number is not finite; nothing has been
            written then.
    """
    _compare(targets, tensors, path)
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            count = int((~torch.isfinite(tensor)).sum())
            raise UserError(
                f"{path} has {count} of {tensor.numel()} numbers in {name} that are not finite, so that the model says "
                f"nothing; choose an earlier checkpoint, or restore the file"
            )
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(tensors[name])


def _compare(targets: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: Path) -> None:
    for name, target in targets.items():
        if name not in tensors:
            raise UserError(f"{path} has no tensor {name}; it was saved by another kind of model")
        if tensors[name].shape != target.shape:
            raise UserError(
                f"{path} is of another shape: {name} is {tuple(tensors[name].shape)} in the file, "
                f"{tuple(target.shape)} in the model; use the recipe it was trained with"
            )
        if tensors[name].dtype != target.dtype and not (
            tensors[name].is_floating_point() and target.is_floating_point()
        ):
            raise UserError(
                f"{path} has {name} as {tensors[name].dtype}, the model as {target.dtype}; it holds something else "
                f"than this model's weights"
            )
    for name in tensors:
        if name not in targets:
            raise UserError(f"{path} has a tensor {name} that this model lacks; use the recipe it was trained with")
