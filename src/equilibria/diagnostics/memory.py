"""What autograd keeps for the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


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
