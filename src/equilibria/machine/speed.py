"""How fast a device multiplies matrices, measured in a fraction of a second."""

import statistics
import time

import torch

_SIZE, _ROUNDS = 256, 7


def bfloat16_speed(device: torch.device) -> float:
    """How many times as fast a product of two matrices is in bfloat16 as in float32: the median of rounds in turn."""
    single = torch.randn(_SIZE, _SIZE, device=device)
    half = single.bfloat16()
    for matrix in (single, half):
        _seconds(matrix)
    return statistics.median(_seconds(single) / _seconds(half) for _ in range(_ROUNDS))


def _seconds(matrix: torch.Tensor) -> float:
    wait(matrix.device)
    start = time.perf_counter()
    for _ in range(4):
        matrix @ matrix  # pyright: ignore[reportUnusedExpression]
    wait(matrix.device)
    return time.perf_counter() - start


def wait(device: torch.device) -> None:
    """Until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
