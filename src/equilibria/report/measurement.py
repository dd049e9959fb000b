"""What a report measures: two short readings of validation text by the run's best model."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from equilibria.data import EncodedSplit, EvaluationStream, Task, Tokenizer
from equilibria.data.batches import NO_TARGET
from equilibria.data.progress import UNWATCHED, Progress
from equilibria.depths import Depth, Equilibrium, Reached
from equilibria.depths.chunks import per_token
from equilibria.inference.loading import LoadedRun, load_task
from equilibria.inference.text_stream import TextStream
from equilibria.models import LanguageModel
from equilibria.solvers import Solver
from equilibria.solvers.residual import relative_residual
from equilibria.solvers.state import Packing

_PASSAGE_TOKENS = 512
_CONVERGENCE_TOKENS = 4096
_CONVERGENCE_EVALUATIONS = 64


@dataclass(frozen=True)
class TokenFigures:
    """Text of one token, or of several where a character is spread over them.

    Attributes:
        evaluations: after which its state had converged, or all that were spent.
        residual: of its state.
        nll: negative log-likelihood given the text before it, in nats; None for the first token.
        converged: whether the residual is within the tolerance.
    """

    text: str
    evaluations: int
    residual: float
    nll: float | None
    converged: bool


@dataclass(frozen=True)
class Convergence:
    """Residuals over tokens at evaluation 1, 2, … of one solve with nothing stopped at the tolerance.

    Attributes:
        mean, p95, worst: one number per evaluation; infinite where a state was not finite.
        tolerance: of the recipe.
        tokens: how many the figures are taken over.
    """

    mean: list[float]
    p95: list[float]
    worst: list[float]
    tolerance: float
    tokens: int


Solves = tuple[Sequence[TokenFigures], Convergence | None]
"""A passage read with the recipe's solver, empty where there is no text, and one solve followed evaluation by
evaluation; None for a depth that has no solver to follow."""


def measure_solves(loaded: LoadedRun, progress: Progress = UNWATCHED) -> Solves | None:
    """Reads the beginning of the run's validation data; None for explicit depths.

    Raises:
        UserError: the text cannot be read, or is no longer the one the model was trained on.
    """
    model = loaded.model
    if not isinstance(model, LanguageModel) or not model.depth.solves:
        return None
    task = load_task(loaded, progress)
    with progress.bar("measuring solves", None, "tokens"):
        return _measured(model, loaded, task)


def _measured(model: LanguageModel, loaded: LoadedRun, task: Task) -> Solves:
    valid, training = task.split("valid"), loaded.recipe.training
    passage = []
    if isinstance(valid, EncodedSplit):
        tokens = valid.tokens[: _PASSAGE_TOKENS + 1]
        passage = read_passage(model, loaded.tokenizer, tokens, training.segment_length)
    if not isinstance(model.depth, Equilibrium):
        return passage, None
    rows = max(1, min(training.batch_size, _CONVERGENCE_TOKENS // training.segment_length))
    segment = next(iter(valid.segments(rows, training.segment_length)))
    return passage, follow_solve(model, segment.inputs, model.depth.eval_solver, segment.targets != NO_TARGET)


def read_passage(
    model: LanguageModel, tokenizer: Tokenizer, tokens: np.ndarray, segment_length: int
) -> list[TokenFigures]:
    """A text with what each token cost, in segments as in evaluation; nothing of a depth that reports no solution.

    Args:
        model: in evaluation mode, on the CPU.
        tokenizer: the model's.
        tokens: (N,) ids, at least 2; the last is only a target.
        segment_length: tokens per solve.
    """
    evaluations, residuals, losses, converged = [], [], [], []
    memory = None
    for segment in EvaluationStream(tokens, 1, segment_length):
        with torch.no_grad():
            output = model(segment.inputs, memory=memory)
        memory, solution, shape = output.memory, output.solution, segment.inputs.shape
        if solution is None:
            return []
        evaluations += per_token(solution.group_evaluations, shape)[0].int().tolist()
        residuals += per_token(solution.residual, shape)[0].tolist()
        converged += per_token(solution.converged, shape)[0].bool().tolist()
        losses += F.cross_entropy(output.logits[0], segment.targets[0], reduction="none").tolist()
    pieces = []
    for text, place in _pieces(tokenizer, [int(token) for token in tokens[:-1]]):
        pieces.append(
            TokenFigures(
                text=text,
                evaluations=max(evaluations[place]),
                residual=max(residuals[place]),
                # the loss at a position is that of the token after it
                nll=sum(losses[place.start - 1 : place.stop - 1]) if place.start else None,
                converged=all(converged[place]),
            )
        )
    return pieces


def follow_solve(
    model: LanguageModel, inputs_BL: Tensor, solver: Solver, counted_BL: Tensor | None = None
) -> Convergence:
    """The residual of every token at each evaluation, without stopping at the tolerance.

    The solver's own method is followed, without a draft or a fallback, for twice its budget but 64 evaluations at most.
    The model is in evaluation mode. Figures are over the tokens in `counted_BL`, all by default: a row that ends before
    others is filled up with tokens that other rows have too.
    """
    counted = torch.ones_like(inputs_BL, dtype=torch.bool) if counted_BL is None else counted_BL
    budget = min(2 * solver.max_evaluations, _CONVERGENCE_EVALUATIONS)
    recorder = _Recorder(replace(solver, tol=0.0, max_evaluations=budget, draft=None, fallback=None))
    with torch.no_grad():
        model(inputs_BL, depth=recorder)
    per_evaluation = [residual[counted].double().numpy() for residual in _side_by_side(recorder.observed)]
    return Convergence(
        mean=[float(residual.mean()) for residual in per_evaluation],
        p95=[float(np.quantile(residual, 0.95, method="lower")) for residual in per_evaluation],
        worst=[float(residual.max()) for residual in per_evaluation],
        tolerance=solver.tol,
        tokens=int(counted.sum()),
    )


class _Recorder(Depth):
    """A depth that solves and keeps, per solve, the residual of every token at every evaluation."""

    def __init__(self, solver: Solver) -> None:
        self._solver = solver
        self.observed: list[list[Tensor]] = []

    def reach(self, f: Callable[[Tensor], Tensor], z0: Tensor, training: bool) -> Reached:
        residuals: list[Tensor] = []
        self.observed.append(residuals)

        def observed(z: Tensor) -> Tensor:
            f_z = f(z)
            residuals.append(relative_residual(f_z, z))
            return f_z

        value = self._solver.solve(observed, z0).value
        return Reached(Packing.of(z0, self._solver.scope).unpack(value), None)


def _side_by_side(solves: Sequence[Sequence[Tensor]]) -> Iterator[Tensor]:
    """The residuals of a segment's chunks, which are solved one after another, at each number of evaluations; a chunk
    that is done, converged or not finite, keeps its last ones."""
    ends = [residuals[-1] for residuals in solves]
    for after in zip_longest(*solves):
        yield torch.cat([end if found is None else found for found, end in zip(after, ends, strict=True)], dim=1)


def _pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[tuple[str, slice]]:
    """The text in pieces that end where characters end, each with the tokens it came from."""
    stream, pieces, start, said = TextStream(tokenizer), list[tuple[str, slice]](), 0, ""
    for end, token in enumerate(ids, start=1):
        said += stream.write(token)
        if end == len(ids):
            said += stream.finish()
        if stream.whole or end == len(ids):
            pieces.append((said, slice(start, end)))
            start, said = end, ""
    return pieces
