"""Kinds of devices, and what they lack."""

from typing import Literal

import torch

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
