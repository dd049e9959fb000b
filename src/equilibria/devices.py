"""Kinds of devices, and what they lack."""

from typing import Literal

import torch

Device = Literal["auto", "cpu", "cuda", "mps"]
"""What may stand where a device is asked for."""

WITHOUT_DOUBLES = {"mps"}
"""Kinds that have no float64."""


def widest(device: torch.device) -> torch.dtype:
    """float64 where the device has that, else float32."""
    return torch.float32 if device.type in WITHOUT_DOUBLES else torch.float64
