"""A module, held still during one solve: parametrized weights computed once, buffers updated once."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from inspect import signature
from threading import Lock, RLock
from typing import Any, Self
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.nn.utils import parametrize

from equilibria.deq.held_map import versions


class HeldCell:
    """The map `z ↦ cell(z, *inputs, **keywords)` as one application of the cell, however often a solve evaluates it.

    Parametrized weights (weight, spectral or orthogonal norm) are computed on entering, with a graph where gradients
    are on. Buffers that the cell updates (vectors of power iterations, statistics of batch norms) are put back before
    each evaluation, so that they remember only the last one, at the solution.

    A context manager around the solve. Evaluations after it, as in a checkpointed backward pass, see the weights and
    buffers of the solve, and leave the buffers as they are.

    Args:
        cell: the module.
        inputs, keywords: its further arguments.
        updated: names of its modules known to update their buffers; with None all are copied to find out.

    Attributes:
        updated: names of the modules found to update their buffers, and of those known before.
    """

    def __init__(
        self, cell: nn.Module, inputs: tuple[Any, ...], keywords: Mapping[str, Any], updated: frozenset[str] | None
    ) -> None:
        self._cell, self._inputs, self._keywords = cell, inputs, keywords
        self.updated, self._known = updated or frozenset(), updated
        self._parametrized = [module for module in cell.modules() if parametrize.is_parametrized(module)]
        self._weights: dict[tuple[int, str], Tensor | None] = {}
        self._cache = ExitStack()
        self._buffers: list[_Buffers] = []
        self._entered = False

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            if self._parametrized:
                stack.enter_context(_alone(self._cell))
                stack.enter_context(parametrize.cached())
                for module in self._parametrized:
                    stack.callback(_forget, self._compute(module))
            self._buffers = [
                _Buffers(module, path, self._known is None or path in self._known)
                for path, module in self._cell.named_modules()
                if any(buffer is not None for buffer in module._buffers.values())
            ]
            self._cache = stack.pop_all()
        self._entered = True
        return self

    def __exit__(self, *_: object) -> None:
        self._entered = False
        self._cache.close()
        self._buffers = [buffers for buffers in self._buffers if buffers.updated]
        self.updated |= {buffers.path for buffers in self._buffers}

    def __call__(self, z: Any) -> Any:
        """`cell(z, *inputs, **keywords)`."""
        if not self._entered:
            with self._again():
                return self._cell(z, *self._inputs, **self._keywords)
        for buffers in self._buffers:
            buffers.restore()
        try:
            return self._cell(z, *self._inputs, **self._keywords)
        finally:
            for buffers in self._buffers:
                buffers.look()

    def _compute(self, module: nn.Module) -> list[tuple[int, str]]:
        """Fill the cache of parametrizations, which holds what was computed first; returns what is new in it."""
        lists = module.parametrizations
        assert isinstance(lists, nn.ModuleDict)
        if any(type(parameter) is not nn.Parameter for parameter in lists.parameters()):
            return []  # a shard has to be gathered first, which the cell's own forward does
        new = [(id(module), name) for name in lists if (id(module), name) not in parametrize._cache]
        for name in lists:
            self._weights[id(module), name] = getattr(module, name)
        return new

    @contextmanager
    def _again(self) -> Iterator[None]:
        """Weights and buffers as in the solve; the buffers afterwards as before."""
        with ExitStack() as stack:
            if self._weights:
                stack.enter_context(_alone(self._cell))
                stack.enter_context(parametrize.cached())
            before = {key: parametrize._cache[key] for key in self._weights if key in parametrize._cache}
            parametrize._cache.update(self._weights)
            now = [buffers.values() for buffers in self._buffers]
            for buffers in self._buffers:
                buffers.restore()
            try:
                yield
            finally:
                for buffers, values in zip(self._buffers, now, strict=True):
                    buffers.put(values)
                _forget(self._weights.keys() - before.keys())
                parametrize._cache.update(before)


def explain_call(problem: TypeError, cell: nn.Module, *arguments: Any, **keywords: Any) -> None:
    """Raises a TypeError that says how a DEQ is called, if `problem` is that the cell cannot be called so."""
    try:
        taken = signature(cell.forward)
    except (TypeError, ValueError):  # of a function that was compiled
        return
    try:
        taken.bind(*arguments, **keywords)
    except TypeError as wrong:
        raise TypeError(
            f"{type(cell).__name__}: {wrong}; a DEQ is called as deq(z0, *inputs) and calls cell(z, *inputs): "
            "z0 is where the solve starts, None for zeros, as in deq(None, x)"
        ) from problem


_locks: WeakKeyDictionary[nn.Module, RLock] = WeakKeyDictionary()
_making = Lock()


@contextmanager
def _alone(cell: nn.Module) -> Iterator[None]:
    """Locks the cell: threads share PyTorch's cache of parametrized weights, where one without gradients would put
    weights without a graph."""
    with _making:
        lock = _locks.setdefault(cell, RLock())
    with lock:
        yield


def _forget(keys: Iterable[tuple[int, str]]) -> None:
    """Other solves may keep the cache alive, and must not find the weights of this one."""
    for key in keys:
        parametrize._cache.pop(key, None)


class _Buffers:
    """The buffers of one module, and what they held before the solve; `copied` where an evaluation may update them.
    They are taken together: batch norm updates its statistics without counting a version, but counts its batches."""

    def __init__(self, module: nn.Module, path: str, copied: bool) -> None:
        self.path, self.updated = path, False
        self._module = module
        self._tensors = self._found()
        self._versions = versions(self._tensors.values())
        self._before = self.values() if copied else None
        self._late = False

    def values(self) -> dict[str, Tensor]:
        """Copies of what they hold now."""
        return {name: tensor.detach().clone() for name, tensor in self._found().items()}

    def look(self) -> None:
        """After an evaluation: whether it wrote to them, or put others in their place."""
        if self._late:
            self.restore()
        if self.updated:
            return
        found = self._found()
        same = found.keys() == self._tensors.keys() and all(found[name] is own for name, own in self._tensors.items())
        self.updated = not same or versions(found.values()) != self._versions
        if not self.updated:
            self._before = None  # most are constants, whose copies need not be kept
        elif self._before is None:
            # This was not known: keep this update and undo those that follow.
            self._tensors, self._before, self._late = found, self.values(), True

    def restore(self) -> None:
        """What they held at first, before an evaluation."""
        if self.updated and self._before is not None:
            self.put(self._before)

    def put(self, values: dict[str, Tensor]) -> None:
        """Fill them without counting a version: what autograd saved of them will be the same when it is read."""
        for name, tensor in self._tensors.items():
            self._module._buffers[name] = tensor
            if name in values:
                tensor.data.copy_(values[name])

    def _found(self) -> dict[str, Tensor]:
        return {name: buffer for name, buffer in self._module._buffers.items() if buffer is not None}
