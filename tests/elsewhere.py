"""A device that is not the CPU, for machines that have none: `torch.device("elsewhere")`.

Its tensors hold their values in memory of the CPU, and say that they are elsewhere. What an accelerator refuses is
refused: an operation on tensors of two devices, unless one is a single number. What would make the host wait for an
accelerator is counted: whatever brings a value, or a shape that depends on values, to the host.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "elsewhere"
_waits: Counter[str] = Counter()
_doubles = True


class _Stream:
    """The only one."""

    def synchronize(self) -> None:
        _waits["synchronize"] += 1

    def wait_stream(self, other: object) -> None:
        del other


class _Backend(_DummyBackendModule):
    """What PyTorch asks a device's module for."""

    _only = _Stream()

    def current_stream(self, device: object = None) -> _Stream:
        del device
        return self._only

    def stream(self, stream: object) -> AbstractContextManager[None]:
        del stream
        return nullcontext()

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    @staticmethod
    def get_rng_state(device: object = None) -> Tensor:
        del device
        return torch.get_rng_state()

    @staticmethod
    def set_rng_state(state: Tensor, device: object = None) -> None:
        del device
        torch.set_rng_state(state)


_setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
DEVICE = torch.device(NAME, 0)

_aten = torch.ops.aten
_MOVES = {_aten.copy_.default, _aten._to_copy.default, _aten.set_.source_Tensor}
_READS = {"_local_scalar_dense", "equal", "is_nonzero", "item", "allclose"}
_SHAPES = {"nonzero", "masked_select", "unique_dim", "_unique2", "unique_consecutive", "repeat_interleave", "bincount"}


class Elsewhere(Tensor):
    """A tensor of that device; `held` has its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Elsewhere:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=DEVICE,
        )
        made.held = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        return _run(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self, **_: object) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return f"Elsewhere({self.held!r})"


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    """An operation on the values, and where its results are."""
    name = func._schema.name.removeprefix("aten::")
    given: list[Tensor] = []
    tree_map(lambda one: given.append(one) if isinstance(one, Tensor) else None, (args, kwargs))
    here = [tensor for tensor in given if not isinstance(tensor, Elsewhere)]
    if func not in _MOVES and any(tensor.dim() for tensor in here) and len(here) < len(given):
        shapes = [tuple(tensor.shape) for tensor in here if tensor.dim()]
        raise RuntimeError(f"aten::{name}: tensors of {DEVICE} and, of shapes {shapes}, of the CPU")
    target = kwargs.get("device")
    goes = None if target is None else torch.device(target).type == NAME
    known = name == "repeat_interleave" and kwargs.get("output_size") is not None
    if (name in _READS | _SHAPES and not known) or (name in ("index", "index_put_", "index_put") and _masked(args[1])):
        _waits[name] += 1
    if goes is False or (func is _aten.copy_.default and not isinstance(args[0], Elsewhere)):
        _waits["copy to the host"] += 1
    if target is not None:
        kwargs = {**kwargs, "device": "cpu"}
    found = func(*_inner(args), **_inner(kwargs))
    if func is _aten.copy_.default and not isinstance(args[0], Elsewhere):
        return args[0]
    if func._schema.is_mutable and isinstance(found, Tensor):
        # In-place operations give back the very tensor, and may have changed its shape.
        for tensor in given:
            if isinstance(tensor, Elsewhere) and tensor.held is found:
                return tensor
    return found if goes is False else _outer(found)


def _check_no_doubles(one: Any) -> None:
    if isinstance(one, Tensor) and one.dtype == torch.float64:
        raise TypeError(f"{DEVICE} has no float64")


def _masked(indices: Any) -> bool:
    return any(index is not None and index.dtype == torch.bool for index in indices)


def _inner(tree: Any) -> Any:
    return tree_map(lambda one: one.held if isinstance(one, Elsewhere) else one, tree)


def _outer(tree: Any) -> Any:
    if not _doubles:
        tree_map(_check_no_doubles, tree)
    return tree_map(lambda one: Elsewhere(one.resolve_conj().resolve_neg()) if isinstance(one, Tensor) else one, tree)


def _made(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`torch.tensor` and its like, which build what they make on the CPU and cannot move it to a device in Python."""

    def making(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        if device is None or torch.device(device).type != NAME:
            return make(data, *args, device=device, **kwargs)
        return make(data, *args, **kwargs).to(device)

    return making


torch.tensor, torch.as_tensor = _made(torch.tensor), _made(torch.as_tensor)


@contextmanager
def without_doubles() -> Iterator[None]:
    """The device has no float64 meanwhile."""
    global _doubles
    _doubles = False
    try:
        yield
    finally:
        _doubles = True


_library = torch.library.Library("_", "IMPL")
_library.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")  # it does all in the precision it is given
_library.fallback(lambda func, *args, **kwargs: _run(func, args, kwargs), "PrivateUse1")


@contextmanager
def waits() -> Iterator[Counter[str]]:
    """Counts what makes the host wait meanwhile, by operation."""
    _waits.clear()
    counted: Counter[str] = Counter()
    yield counted
    counted.update(_waits)
