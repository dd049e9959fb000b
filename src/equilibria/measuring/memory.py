"""Memory: what autograd keeps for the backward pass, and the peak while something runs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def saved_bytes(run: Callable[[], Any], exclude: Iterable[Tensor] = ()) -> int:
    """Bytes of the distinct storages that autograd saves while `run` builds a graph.

    Args:
        run: builds the graph and returns something that keeps it alive, such as a loss.
        exclude: tensors that exist anyway, such as parameters, buffers and inputs.
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in exclude}
    storages: dict[int, torch.UntypedStorage] = {}  # kept, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        graph = run()
    total = sum(storage.nbytes() for storage in storages.values())
    del graph
    return total


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Bytes of new tensors at the peak while `run` runs.

    On CUDA the allocator counts; elsewhere every operation's results are watched until they are freed, and a kernel's
    own work space is not seen.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with Watch() as watch:
        run()
    return watch.peak


class Watch(TorchDispatchMode):
    """Counts the storages that operations make while it is on, until they are freed.

    Attributes:
        held, peak: bytes now, and at most so far.
        paused: whether what operations make does not count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self.paused = False
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in () if self.paused else tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf.untyped_storage(), given)
        return result

    def _see(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        number = storage._cdata
        if number in self._known or number in given:
            return
        self._known.add(number)
        self.held += storage.nbytes()
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._free, number, storage.nbytes())

    def _free(self, number: int, size: int) -> None:
        self._known.discard(number)
        self.held -= size
