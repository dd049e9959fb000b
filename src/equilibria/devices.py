"""Kinds of devices, and what they lack."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

import torch
from torch import Tensor

Device = Literal["auto", "cpu", "cuda", "mps"]
"""Where to compute; auto takes CUDA if there is a device."""

_WITHOUT_DOUBLES = {"mps"}  # kinds that have no float64


def widest(device: torch.device) -> torch.dtype:
    """float64 where the device has that, else float32."""
    return torch.float32 if device.type in _WITHOUT_DOUBLES else torch.float64


def own_generator(device: torch.device) -> torch.Generator | None:
    """The default generator of an accelerator's random numbers; None on the CPU, whose is `torch.default_generator`."""
    if device.type == "cuda":
        index = device.index if device.index is not None else torch.cuda.current_device()
        return torch.cuda.default_generators[index]
    return torch.mps._get_default_mps_generator() if device.type == "mps" else None


class Autocast:
    """The autocast of now, of the CPU and of a tensor's device, to be entered again where it is another."""

    def __init__(self, like: Tensor) -> None:
        self._kinds = {
            kind: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in sorted({"cpu", like.device.type})
            if torch.amp.is_autocast_available(kind)
        }

    @contextmanager
    def again(self) -> Iterator[None]:
        with ExitStack() as stack:
            for kind, (enabled, dtype) in self._kinds.items():
                stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled))
            yield
