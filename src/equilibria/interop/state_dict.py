"""A state dictionary of another project, every tensor of which is taken once or named as left over.

Weights come plain or normalised (`g · v / ‖v‖` per row) in either of PyTorch's layouts; 1×1 convolutions are matrices;
the prefixes `module.` of DataParallel and `_orig_mod.` of a compiled model are dropped; tensors become float32.
"""

import os
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch
from torch import Tensor

from equilibria.errors import UserError
from equilibria.runs.weights import read_tensors

_WRAPPERS = ("module.", "_orig_mod.")
_MOST_TIED = 16  # times the file's size that tensors may add up to: tied weights share their numbers
_REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_NORMALISED = (("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1"))
"""Norm and direction of a normalised weight: PyTorch's hooks, and its parametrizations."""


@dataclass(frozen=True)
class Weight:
    """A matrix `(rows, columns)`, or with a norm `(rows, 1)` the direction of one, as weight norm keeps it."""

    matrix: Tensor
    norm: Tensor | None

    @property
    def effective(self) -> Tensor:
        """The matrix as it is used."""
        if self.norm is None:
            return self.matrix
        return self.matrix * (self.norm / torch.linalg.vector_norm(self.matrix, dim=1, keepdim=True))


class StateDict:
    """Tensors by name, each to be taken once; `source` is named in messages.

    Raises:
        UserError: it is empty, or an entry is not a tensor of real numbers.
    """

    def __init__(self, tensors: Mapping[str, object], source: Path) -> None:
        if not tensors:
            raise UserError(f"{source} holds no tensors; give the state dictionary of a model")
        self.source = source
        self._left = {name: self._real(name, tensor) for name, tensor in _unwrapped(tensors).items()}
        self._taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._left or name in self._taken

    def shape(self, *names: str) -> tuple[int, ...]:
        """The shape of the first of `names` that exists, without a convolution's trailing ones."""
        for name in names:
            if name in self._left:
                shape = self._left[name].shape
                while len(shape) > 2 and shape[-1] == 1:
                    shape = shape[:-1]
                return tuple(shape)
        there = ", ".join(sorted(self._left)[:3])
        raise UserError(f"{self.source} has no {' or '.join(names)} (it has {there} …); check the kind and the file")

    def matrix_shape(self, *names: str) -> tuple[int, int]:
        """The rows and columns of the first of `names` that exists; a UserError if it is not a matrix or empty."""
        match self.shape(*names):
            case (rows, columns) if rows and columns:
                return rows, columns
            case shape:
                found = next(name for name in names if name in self._left)
                raise UserError(f"{self.source}: {found} is {_sizes(shape)}; expected rows and columns")

    def weight_shape(self, layer: str) -> tuple[int, int]:
        """The shape of a layer's weight, normalised or not."""
        return self.matrix_shape(f"{layer}.weight", *(f"{layer}.{direction}" for _, direction in _NORMALISED))

    def count(self, pattern: str) -> int:
        """How many numbers from 0 on follow `pattern` in names."""
        there = {name.removeprefix(pattern).partition(".")[0] for name in self._left if name.startswith(pattern)}
        return next(number for number in count() if str(number) not in there)

    def take(self, name: str, *shape: int) -> Tensor:
        """A tensor; a UserError if it is missing, or of another shape."""
        found = self.shape(name)
        if found != shape:
            raise UserError(f"{self.source}: {name} is {_sizes(found)}; the other tensors ask for {_sizes(shape)}")
        self._taken.add(name)
        return self._left.pop(name).to(torch.float32).reshape(shape)

    def take_weight(self, layer: str, rows: int, columns: int) -> Weight:
        """A layer's weight, plain or normalised per row; errors as for `take`."""
        for norm, direction in _NORMALISED:
            if f"{layer}.{direction}" in self._left:
                matrix = self.take(f"{layer}.{direction}", rows, columns)
                return Weight(matrix, self.take(f"{layer}.{norm}", rows, 1))
        return Weight(self.take(f"{layer}.weight", rows, columns), None)

    def finish(self, kind: str) -> None:
        """Raises a UserError that names what has not been taken."""
        if self._left:
            names = sorted(self._left)
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(f"{self.source}: a {kind} has no {', '.join(names[:3])}{more}; check the kind")

    def _real(self, name: str, tensor: object) -> Tensor:
        if not isinstance(tensor, Tensor):
            what = f"{name!r} is a {type(tensor).__name__}"
            raise UserError(f"{self.source}: {what}, not a tensor; give a bare state dictionary")
        if tensor.dtype not in _REAL or tensor.layout != torch.strided or tensor.is_meta:
            found = f"{tensor.dtype} on {tensor.device}, {tensor.layout}"
            raise UserError(f"{self.source}: {name} is {found}; expected floating-point numbers, 16 bits or more")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise UserError(f"{self.source}: {name} is {_sizes(tuple(tensor.shape))}; the file holds fewer numbers")
        return tensor.detach()


def read_state_dict(path: Path) -> StateDict:
    """Reads a file of `torch.save(model.state_dict(), …)`, or a safetensors file; never runs code in it.

    Raises:
        UserError: the file is missing, damaged, or holds anything but tensors.
    """
    return StateDict(read_tensor_file(path), path)


def read_tensor_file(path: Path) -> Mapping[str, object]:
    """What a file of `torch.save` or a safetensors file holds by name; errors as for `read_state_dict`."""
    if path.suffix == ".safetensors":
        return read_tensors(path)
    if not os.path.isfile(path):  # unlike Path's, not raising for a name that is too long
        raise UserError(f"{path} does not exist or is not a file; check the path")
    try:
        is_checked = _check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old formats
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError as problem:
        found = "holds more than tensors, or is not a PyTorch file"
        raise UserError(f"{path} {found}; save model.state_dict() alone") from problem
    except Exception as problem:  # PyTorch's reader raises whatever a damaged byte leads it to
        raise UserError(f"{path} cannot be read ({_line(problem)}); copy it again") from problem
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path} holds a {type(content).__name__}; expected the state dictionary of a model")
    for name in content:
        if not isinstance(name, str):
            kind = type(name).__name__
            raise UserError(f"{path} has a name that is a {kind}; expected text, as model.state_dict() has")
    declared = sum(tensor.numel() * tensor.element_size() for tensor in content.values() if isinstance(tensor, Tensor))
    if declared > _MOST_TIED * path.stat().st_size:
        raise UserError(f"{path} has tensors of {declared:,} bytes in {path.stat().st_size:,}; save them one by one")
    if not is_checked:
        warnings.warn(f"{path} has no checksums (PyTorch before 1.6): damage to it goes unnoticed", stacklevel=1)
    return content


def _check_archive(path: Path) -> bool:
    """Checks the sizes and CRC-32 of all in a file of `torch.save`, which PyTorch does not; False for no archive."""
    if not zipfile.is_zipfile(path):  # written by PyTorch before 1.6
        return False
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > path.stat().st_size:  # `torch.save` compresses nothing, and a bomb would take forever to read
            raise ValueError(f"it unpacks to {unpacked:,} bytes and has {path.stat().st_size:,}")
        damaged = archive.testzip()
    if damaged is not None:
        raise UserError(f"{path} is damaged: the CRC-32 of {damaged} in it differs; copy it again")
    return True


def _unwrapped(tensors: Mapping[str, object]) -> dict[str, object]:
    """Without the wrappers' prefixes that all names share."""
    content = dict(tensors)
    while wrapper := next((prefix for prefix in _WRAPPERS if all(str(n).startswith(prefix) for n in content)), None):
        content = {str(name).removeprefix(wrapper): tensor for name, tensor in content.items()}
    return content


def _line(problem: Exception) -> str:
    return (str(problem).splitlines() or [type(problem).__name__])[0][:120]


def _sizes(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape)) or "a single number"
