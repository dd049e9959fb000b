"""How fast a device multiplies matrices, measured in a fraction of a second."""

import statistics
import time

import torch

from equilibria.measuring.steps import synchronize

_SIZE, _ROUNDS = 256, 7


def bfloat16_speed(device: torch.device) -> float:
    """How many times faster a matrix product is in bfloat16 than in float32: the median of alternating rounds."""
    single = torch.randn(_SIZE, _SIZE, device=device)
    half = single.bfloat16()
    for matrix in (single, half):
        _seconds(matrix)
    return statistics.median(_seconds(single) / _seconds(half) for _ in range(_ROUNDS))


def _seconds(matrix: torch.Tensor) -> float:
    synchronize(matrix.device)
    start = time.perf_counter()
    for _ in range(4):
        matrix @ matrix  # pyright: ignore[reportUnusedExpression]
    synchronize(matrix.device)
    return time.perf_counter() - start
