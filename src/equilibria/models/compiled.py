"""The step of a text that is written alone, compiled: one token, from its features to its logits.

Where matrices are small, decoding waits for Python and for calls of small operations. Here prelude, solve, coda and
softmax of one token are exported as one graph, loop of the solve included, and compiled ahead of time to a package that
is loaded in no time. The package has no weights in it: it reads the model's own, as they are. It says of each token
whether it could solve it; where it could not, the usual way does, so that failures are what they always are.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from equilibria.cells import Cache, Cell, ContractiveCell, StackedCell
from equilibria.cells.cache import TokenView
from equilibria.depths import Depth, Equilibrium
from equilibria.errors import UserError
from equilibria.models.decoding import Step
from equilibria.models.speculation import solver_of_tokens
from equilibria.nn import TiedEmbedding
from equilibria.nn.attention import Place, SelfAttention
from equilibria.nn.hooks import unhooked
from equilibria.solvers import Solution, Solver, Status
from equilibria.solvers.traced import MOST, is_traceable, solve_traced

if TYPE_CHECKING:
    from equilibria.models.language_model import LanguageModel

_EXAMPLE = 64  # tokens of the past that is traced
_FEWEST = 2  # of a past; sizes 0 and 1 are compiled apart
_ALONE = 2**22  # weights below which one thread is faster than several
_PLACED = ("rotary", "none")
# Without weights, nor anything made of their values: few numbers would be written into the code. And what a product
# reads is computed once, not once for each of its rows.
_SETTINGS: dict[str, Any] = {
    "aot_inductor.package_constants_in_so": False,
    "always_keep_tensor_constants": True,
    "joint_graph_constant_folding": False,
    "realize_reads_threshold": 1,
    "realize_opcount_threshold": 1,
    "realize_acc_reads_threshold": 1,
}


class CompiledToken:
    """A compiled step of one token of a model, on a CPU.

    Args:
        model: in evaluation mode; its weights may change.
        package: what `compile_token` has written for a model of this shape.

    Raises:
        UserError: the model cannot be compiled, or the package not be loaded.
    """

    def __init__(self, model: LanguageModel, package: Path) -> None:
        check_compilable(model)
        try:
            loaded: Any = torch._inductor.aoti_load_package(str(package))
        except RuntimeError as problem:
            raise UserError(f"{package} cannot be loaded ({str(problem).splitlines()[0]}); remove it") from problem
        self._model, self._solver, self._cells = model, _solver_of(model.depth), _cells(model)
        self._names: list[str] = loaded.get_constant_fqns()
        weights = _weights(model)
        self._weights = [weights[name] for name in self._names]
        self._places, self._whole = [weight.data_ptr() for weight in self._weights], True
        constants = {name: weights[name].detach() for name in self._names}
        loaded.load_constants(constants, check_full_update=True, user_managed=True)
        # What the package itself is, without a look at how its arguments are nested.
        self._run = loaded.loader.boxed_run
        self._depth: Depth | None = None  # the latest that was found to be what was compiled, and its tolerance
        self._tol = torch.empty(())

    def read(self, inputs_11D: Tensor, cache: Cache, depth: Depth) -> Step | None:
        """What the next token makes, which the cache keeps from then on; None where that takes the usual way:
        several rows or tokens, another depth, hooks, weights that have moved, or a solve that does not converge."""
        if not cache.tokens:  # a text begins: parts of the model may be others since the last one
            weights = _weights(self._model)
            self._whole = all(weights.get(name) is one for name, one in zip(self._names, self._weights, strict=True))
        if inputs_11D.shape[:2] != (1, 1) or not self._applies(inputs_11D, depth):
            return None
        slots = cache.slots(inputs_11D)
        if slots is None or slots.seen[0].shape[-2] < _FEWEST:
            return None
        assert isinstance(depth, Equilibrium)
        solver = depth.eval_solver
        bounds = torch.tensor([slots.position, solver.max_evaluations])
        hidden, state, count, trace_M, sound, *others = self._run([inputs_11D, bounds, self._tol, *slots.seen])
        if not sound:
            return None
        for slot, new in zip(slots.own, others, strict=False):
            slot.copy_(new)
        cache.advance(state)
        evaluations = int(count)
        residual_11 = trace_M[evaluations - 1].view(1, 1)
        solution = Solution(
            value=state,
            status=Status.CONVERGED,
            residual=residual_11,
            converged=torch.ones(1, 1, dtype=torch.bool),
            tolerance=solver.tol,
            evaluations=evaluations,
            trace=trace_M[:evaluations].tolist(),
            group_evaluations=count.to(torch.int32).view(1, 1),
        )
        logits_11V = others[-1] if len(others) > len(slots.own) else None
        return Step(hidden, self._model.embedding, cache, solution, logits_11V)

    def __deepcopy__(self, _: object) -> None:
        """Nothing: a copy of the model has weights of its own."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()

    def _applies(self, inputs_11D: Tensor, depth: Depth) -> bool:
        """Whether what was compiled is what is asked for."""
        if depth is not self._depth:
            if not isinstance(depth, Equilibrium) or depth.restarts is not None:
                return False
            tol, most = self._solver.tol, self._solver.max_evaluations  # a call may have its own
            if replace(depth.eval_solver, tol=tol, max_evaluations=most) != self._solver:
                return False
            self._depth, self._tol = depth, torch.tensor(depth.eval_solver.tol)
        there = [weight.data_ptr() for weight in self._weights] == self._places
        plain = inputs_11D.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        return self._whole and there and plain and all(map(unhooked, self._cells))


def compile_token(model: LanguageModel, package: Path) -> None:
    """Compiles a step of one token of models of this shape, which takes half a minute, and writes it to a `.pt2` file.

    Raises:
        UserError: the model cannot be compiled, or there is no C++ compiler.
    """
    check_compilable(model)
    graph, slots = _OneToken(model), torch.export.Dim("slots", min=_FEWEST, max=2**24)
    like = next(model.parameters())
    past = [like.new_zeros(1, _EXAMPLE, *entry).movedim(1, -2) for entry in model.new_cache().entries]
    inputs = (like.new_zeros(1, 1, model.cell.d_model), torch.tensor([_EXAMPLE, MOST]), torch.tensor(1e-3), *past)
    shapes = {"inputs_11D": {}, "bounds": {}, "tol": {}, "past": tuple({2: slots} for _ in past)}
    small = sum(weight.numel() for weight in graph.state_dict().values()) < _ALONE
    settings = _SETTINGS | ({"cpp.threads": 1} if small else {})
    with torch.no_grad(), _quiet():
        program = torch.export.export(graph, inputs, strict=False, dynamic_shapes=shapes)
        program = program.run_decompositions({torch.ops.aten.linear.default: _linear})
        try:
            torch._inductor.aoti_compile_and_package(program, package_path=str(package), inductor_configs=settings)
        except Exception as problem:
            raise UserError(_reason(problem)) from problem


def check_compilable(model: LanguageModel) -> None:
    """Raises a UserError, which says why, for a model whose step of one token cannot be compiled."""
    solver, weights = _solver_of(model.depth), list(model.parameters())
    if not is_traceable(solver):
        raise UserError(
            f"a token is compiled with Picard, or with Anderson of history 1, as eval_solver; found {solver!r}"
        )
    for cell in _cells(model):
        attentions = [part for part in cell.modules() if isinstance(part, SelfAttention)]
        known = type(cell) is ContractiveCell or (type(cell) is StackedCell and cell is not model.cell)
        if not known or not all(one.positions in _PLACED and not one.strict for one in attentions):
            raise UserError(
                f"a token is compiled of contractive cells that see themselves, with rotary positions or none; found "
                f"{type(cell).__name__}"
            )
    where = {(weight.device.type, weight.dtype) for weight in weights}
    if where != {("cpu", torch.float32)}:
        found = ", ".join(sorted(f"{dtype} on {device}" for device, dtype in where))
        raise UserError(f"a token is compiled in float32 on a CPU; found {found}")


class _OneToken(nn.Module):
    """What is exported: prelude, solve, coda and softmax, with the past in the slots of a cache."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.prelude, self.cell, self.coda = model.prelude, model.cell, model.coda
        # Any other softmax, which may be anyone's, is left as it is.
        self.embedding = model.embedding if type(model.embedding) is TiedEmbedding else None
        self._solver = _solver_of(model.depth)

    def forward(self, inputs_11D: Tensor, bounds: Tensor, tol: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        """Of embedded inputs, their position and the most evaluations: the final state, how the solve ended, the
        token's keys and values, cell after cell, and the logits, where they are of the embedding's own matrix."""
        position, most = bounds.unbind()
        seen, parts, own = past[0].shape[-2], iter(past), list[Tensor]()
        place = Place(seen, 0, None, (position - seen).unsqueeze(0))

        def view(cell: Cell) -> TokenView:
            return TokenView(tuple(islice(parts, len(cell.cached))), place, {}, seen)

        def once(cell: Cell, inputs_11D: Tensor) -> Tensor:
            bound = cell.bind(inputs_11D, replace(view(cell), own=own))
            return cell.readout(bound.evaluate(cell.initial_state(inputs_11D)))

        if self.prelude is not None:
            inputs_11D = once(self.prelude, inputs_11D)
        before = view(self.cell)
        bound = self.cell.bind(inputs_11D, before)
        solved = solve_traced(self._solver, bound.evaluate, self.cell.initial_state(inputs_11D), tol, most)
        bound.over(replace(before, own=own)).evaluate(solved.value)
        hidden_11D = self.cell.readout(solved.value)
        if self.coda is not None:
            hidden_11D = once(self.coda, hidden_11D)
        logits = () if self.embedding is None else (self.embedding.logits(hidden_11D),)
        return (hidden_11D, *solved, *own, *logits)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A product of one row as a sum, which is compiled with what is around it; a call of a library takes as long."""
    if x.numel() != x.shape[-1]:
        return NotImplemented
    y = (weight * x.reshape(1, -1)).sum(-1).reshape(*x.shape[:-1], -1)
    return y if bias is None else y + bias


def _weights(model: LanguageModel) -> dict[str, Tensor]:
    """All of them, by name."""
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


def _cells(model: LanguageModel) -> list[Cell]:
    """All of them, those of stacks too."""
    return [part for part in model.modules() if isinstance(part, Cell)]


def _solver_of(depth: Depth) -> Solver:
    return solver_of_tokens(depth, "a token is compiled")


def _reason(problem: Exception) -> str:
    """Why a compilation failed, in a line."""
    said = f"{type(problem).__name__}: {problem}".splitlines()[0]
    return f"a step of one token cannot be compiled ({said}); see `equilibria doctor`, or leave it uncompiled"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what PyTorch tells its own developers."""
    with warnings.catch_warnings():
        for kind in (FutureWarning, DeprecationWarning):
            warnings.simplefilter("ignore", kind)
        yield
