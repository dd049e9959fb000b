"""A segment that was solved chunk after chunk, reported as one."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor

from equilibria.depths.base import Reached
from equilibria.solvers import Solution, Status
from equilibria.solvers.solution import register

SEVERITY = (Status.CONVERGED, Status.MAX_EVALUATIONS, Status.STALLED, Status.DIVERGED, Status.NON_FINITE)
"""How a solve may end, from best to worst."""


@dataclass(kw_only=True)
class ChunkedSolution(Solution):
    """The solves of the chunks of one segment, side by side along the length.

    `status` is the worst of theirs. Figures per group are per token here, `(B, L)`; a token of a chunk that was solved
    as one group has that group's. `evaluations` and `trace` are as if all chunks were solved at once: the most of any
    chunk, and the worst residual of any, where a finished chunk stays as it ended. Only `chunks` have `adjoint`,
    `group_trace` and `iterates`.

    Attributes:
        chunks: the solutions, from left to right.
    """

    chunks: tuple[Solution, ...]


register(ChunkedSolution, "chunks")


def joined(parts: Sequence[Reached]) -> Reached:
    """Where the chunks of one segment arrived, as one: states side by side, penalties as means per token."""
    if len(parts) == 1:
        return parts[0]
    lengths = [part.state.shape[1] for part in parts]
    weighted = [
        part.penalty * (length / sum(lengths))
        for part, length in zip(parts, lengths, strict=True)
        if part.penalty is not None
    ]
    # A chunk with fewer states than another had ended by then.
    count = max(len(part.states) for part in parts)
    filled = [[*part.states, *[part.state] * (count - len(part.states))] for part in parts]
    return Reached(
        state=torch.cat([part.state for part in parts], dim=1),
        solution=_joined_solution([part.solution for part in parts if part.solution is not None]),
        penalty=torch.stack(weighted).sum() if weighted else None,
        states=tuple(torch.cat(states, dim=1) for states in zip(*filled, strict=True)),
    )


def _joined_solution(chunks: Sequence[Solution]) -> Solution | None:
    if not chunks:
        return None
    traces = [[*chunk.trace] for chunk in chunks]
    ends = [trace[-1] for trace in traces]
    trace = [
        max(end if value is None else value for value, end in zip(values, ends, strict=True))
        for values in zip_longest(*traces)
    ]
    tracked = [chunk.tracked for chunk in chunks if chunk.tracked is not None]
    points = [torch.cat(states, dim=1) for states in zip(*tracked, strict=True)]
    return ChunkedSolution(
        value=torch.cat([chunk.value for chunk in chunks], dim=1),
        status=max((chunk.status for chunk in chunks), key=SEVERITY.index),
        residual=torch.cat([per_token(chunk.residual, chunk.value.shape[:2]) for chunk in chunks], dim=1),
        converged=torch.cat([per_token(chunk.converged, chunk.value.shape[:2]) for chunk in chunks], dim=1),
        tolerance=chunks[0].tolerance,
        evaluations=max(chunk.evaluations for chunk in chunks),
        trace=trace,
        group_evaluations=torch.cat(
            [per_token(chunk.group_evaluations, chunk.value.shape[:2]) for chunk in chunks], dim=1
        ),
        tracked=(points[0], points[1]) if len(tracked) == len(chunks) else None,
        chunks=tuple(chunks),
    )


def per_token(figure: Tensor, shape: Sequence[int]) -> Tensor:
    """A figure per group, `(B,)` or `(B, L)`, as one per token `(B, L)`."""
    return (figure if figure.dim() == 2 else figure.unsqueeze(-1)).expand(*shape)
