"""A module, held still for the time of one solve: parametrized weights computed once, buffers updated once."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize


class HeldCell:
    """The map `z ↦ cell(z, *inputs, **keywords)` as one application of the cell, however often a solve evaluates it.

    Parametrized weights (weight, spectral or orthogonal norm) are computed on entering, with a graph where gradients
    are on. Buffers that the cell updates (vectors of power iterations, statistics of batch norms) are put back before
    each evaluation, so that the last one alone, at the solution, is what they remember.

    A context manager around the solve. Evaluations after it, as a checkpointed backward pass makes them, see the
    weights and buffers of the solve, and leave the buffers as they are.

    Args:
        cell: the module.
        inputs, keywords: its further arguments.
        updated: names of the buffers it is known to update; None for not known, when all are copied to find out.

    Attributes:
        updated: names of the buffers that were found to be updated.
    """

    def __init__(
        self, cell: nn.Module, inputs: tuple[Any, ...], keywords: Mapping[str, Any], updated: frozenset[str] | None
    ) -> None:
        self._cell, self._inputs, self._keywords = cell, inputs, keywords
        self.updated, self._known = updated or frozenset(), updated
        self._parametrized = [module for module in cell.modules() if parametrize.is_parametrized(module)]
        self._weights: dict[tuple[int, str], Tensor | None] = {}
        self._cache: AbstractContextManager[None] = nullcontext()
        self._buffers: list[_Buffer] = []
        self._entered = False

    def __enter__(self) -> HeldCell:
        if self._parametrized:
            self._cache = parametrize.cached()
        self._cache.__enter__()
        try:
            for module in self._parametrized:
                self._compute(module)
        except BaseException:
            self._cache.__exit__(*sys.exc_info())
            raise
        self._buffers = [
            _Buffer.of(module, f"{prefix}.{name}", name, self._known)
            for prefix, module in self._cell.named_modules()
            for name, buffer in module._buffers.items()
            if buffer is not None and not buffer.is_inference()
        ]
        self._entered = True
        return self

    def __exit__(self, *_: object) -> None:
        self._entered = False
        self._cache.__exit__(None, None, None)
        self._cache = nullcontext()
        self._buffers = [buffer for buffer in self._buffers if buffer.updated]
        self.updated |= {buffer.path for buffer in self._buffers}

    def __call__(self, z: Any) -> Any:
        """`cell(z, *inputs, **keywords)`."""
        if not self._entered:
            with self._again():
                return self._cell(z, *self._inputs, **self._keywords)
        for buffer in self._buffers:
            buffer.restore()
        try:
            return self._cell(z, *self._inputs, **self._keywords)
        finally:
            for buffer in self._buffers:
                buffer.look()

    def _compute(self, module: nn.Module) -> None:
        """Fill the cache of parametrizations, which holds what was computed first."""
        lists = module.parametrizations
        assert isinstance(lists, nn.ModuleDict)
        if any(type(parameter) is not nn.Parameter for parameter in lists.parameters()):
            return  # a shard has to be gathered first, which the cell's own forward does
        for name in lists:
            self._weights[id(module), name] = getattr(module, name)

    @contextmanager
    def _again(self) -> Iterator[None]:
        """Weights and buffers as in the solve; the buffers afterwards as before."""
        with parametrize.cached() if self._weights else nullcontext():
            before = {key: parametrize._cache[key] for key in self._weights if key in parametrize._cache}
            parametrize._cache.update(self._weights)
            now = [buffer.current.clone() for buffer in self._buffers]
            for buffer in self._buffers:
                buffer.restore()
            try:
                yield
            finally:
                for buffer, value in zip(self._buffers, now, strict=True):
                    buffer.put(value)
                parametrize._cache.update(before)


@dataclass
class _Buffer:
    """A buffer of a module, and what it held before the solve."""

    module: nn.Module
    path: str
    name: str
    tensor: Tensor
    version: int
    before: Tensor | None
    updated: bool = False

    @classmethod
    def of(cls, module: nn.Module, path: str, name: str, known: frozenset[str] | None) -> _Buffer:
        tensor = module._buffers[name]
        assert tensor is not None
        kept = tensor.detach().clone() if known is None or path in known else None
        return cls(module, path, name, tensor, tensor._version, kept)

    @property
    def current(self) -> Tensor:
        """What stands in the module now."""
        found = self.module._buffers.get(self.name)
        return found if found is not None else self.tensor

    def look(self) -> None:
        """After an evaluation: whether it wrote to the buffer, or put another in its place."""
        if self.updated:
            return
        current = self.current
        self.updated = current is not self.tensor or current._version != self.version
        if not self.updated:
            self.before = None  # most are constants; their copies are not kept
        elif self.before is None:  # nobody knew: what this first update made of it, then
            self.tensor, self.before = current, current.detach().clone()

    def restore(self) -> None:
        """Before an evaluation: what the buffer held at first."""
        if self.updated and self.before is not None:
            self.put(self.before)

    def put(self, value: Tensor) -> None:
        """Fill the buffer without counting a version: what autograd saved of it is as it was when it is read again."""
        self.module._buffers[self.name] = self.tensor
        self.tensor.data.copy_(value)
