"""A state dictionary of another project, every tensor of which is taken once or named as left over.

Weights come plain or normalised (`g · v / ‖v‖` per row), the latter in either of PyTorch's layouts; 1×1 convolutions
are matrices; `module.` of DataParallel and `_orig_mod.` of a compiled model fall away; every tensor becomes float32.
"""

import pickle
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from equilibria.errors import UserError
from equilibria.inference.weights import read_tensors

_WRAPPERS = ("module.", "_orig_mod.")
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
    """Tensors by name, each to be taken once.

    Args:
        tensors: the state dictionary.
        source: where it is from, for messages.

    Raises:
        UserError: an entry is no tensor of real numbers.
    """

    def __init__(self, tensors: Mapping[str, object], source: Path) -> None:
        self.source = source
        self._left = {name: self._real(name, tensor) for name, tensor in _unwrapped(tensors).items()}
        self._taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._left or name in self._taken

    def shape(self, *names: str) -> tuple[int, ...]:
        """The shape of the first of `names` that there is, without a convolution's trailing ones.

        Raises:
            UserError: there is none of them.
        """
        for name in names:
            if name in self._left:
                shape = self._left[name].shape
                while len(shape) > 2 and shape[-1] == 1:
                    shape = shape[:-1]
                return tuple(shape)
        raise self._missing(*names)

    def weight_shape(self, layer: str) -> tuple[int, ...]:
        """The shape of a layer's weight, normalised or not."""
        return self.shape(f"{layer}.weight", *(f"{layer}.{direction}" for _, direction in _NORMALISED))

    def count(self, pattern: str) -> int:
        """How many there are of a numbered thing: names that begin with `pattern` and a number from 0 on."""
        number = 0
        while any(name.startswith(f"{pattern}{number}.") or name == f"{pattern}{number}" for name in self._left):
            number += 1
        return number

    def take(self, name: str, *shape: int) -> Tensor:
        """A tensor of a shape.

        Raises:
            UserError: it is missing, or of another shape.
        """
        found = self.shape(name)
        if found != shape:
            raise UserError(f"{self.source}: {name} is {_sizes(found)}; the other tensors ask for {_sizes(shape)}")
        self._taken.add(name)
        return self._left.pop(name).reshape(shape)

    def take_weight(self, layer: str, rows: int, columns: int) -> Weight:
        """A layer's weight, plain or normalised per row.

        Raises:
            UserError: it is missing, or of another shape.
        """
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

    def _missing(self, *names: str) -> UserError:
        there = ", ".join(sorted(self._left)[:3])
        return UserError(f"{self.source} has no {' or '.join(names)} (it has {there} …); check the kind and the file")

    def _real(self, name: str, tensor: object) -> Tensor:
        if not isinstance(tensor, Tensor):
            what = f"{name!r} is a {type(tensor).__name__}"
            raise UserError(f"{self.source}: {what}, not a tensor; give a bare state dictionary")
        if not tensor.is_floating_point():
            raise UserError(f"{self.source}: {name} is {tensor.dtype}; expected floating-point numbers")
        return tensor.detach().to("cpu", torch.float32)


def read_state_dict(path: Path) -> StateDict:
    """Reads a file of `torch.save(model.state_dict(), …)`, or a safetensors file. No code in it is ever run.

    Raises:
        UserError: the file is missing, damaged, or holds anything but tensors.
    """
    return StateDict(read_tensor_file(path), path)


def read_tensor_file(path: Path) -> Mapping[str, object]:
    """What a file of `torch.save` or a safetensors file holds by name.

    Raises:
        UserError: the file is missing or damaged, or holds what is not loaded as data.
    """
    if path.suffix == ".safetensors":
        return read_tensors(path)
    is_checked = _check_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as problem:
        raise UserError(f"{path} does not exist; check the path") from problem
    except pickle.UnpicklingError as problem:
        raise UserError(
            f"{path} holds more than tensors, or is no PyTorch file ({_line(problem)}); save model.state_dict() alone"
        ) from problem
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as problem:
        raise UserError(f"{path} cannot be read ({_line(problem)}); copy it again") from problem
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path} holds a {type(content).__name__}; expected the state dictionary of a model")
    if not is_checked:
        warnings.warn(
            f"{path} has no checksums, as files of before PyTorch 1.6: damage to it goes unnoticed", stacklevel=1
        )
    return content


def _check_archive(path: Path) -> bool:
    """Checks the CRC-32 of all that is in a file of `torch.save`, which PyTorch leaves unread.

    Returns:
        Whether there are any: what PyTorch wrote before 1.6 is no archive.

    Raises:
        UserError: one differs.
    """
    try:
        if not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (OSError, RuntimeError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as problem:
        raise UserError(f"{path} cannot be read ({_line(problem)}); copy it again") from problem
    if damaged is not None:
        raise UserError(f"{path} is damaged: the CRC-32 of {damaged} in it differs; copy it again")
    return True


def _unwrapped(tensors: Mapping[str, object]) -> dict[str, object]:
    """Without the prefixes that every name has."""
    content = dict(tensors)
    while wrapper := next((prefix for prefix in _WRAPPERS if all(str(n).startswith(prefix) for n in content)), None):
        content = {str(name).removeprefix(wrapper): tensor for name, tensor in content.items()}
    return content


def _line(problem: Exception) -> str:
    """The first line of what went wrong."""
    return (str(problem).splitlines() or [type(problem).__name__])[0][:120]


def _sizes(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape)) or "a single number"
