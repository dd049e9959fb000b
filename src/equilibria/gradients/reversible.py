"""The reversible gradient (McCallum, Arora and Foster 2025, arXiv:2509.12917): backpropagation through every step of an
iteration that is run backwards instead of being stored.

The iteration holds a pair of states, `y ← (1 − β) y + β f(z)`, then `z ← (1 − β) z + β f(y)`. As one sequence of
evaluations this is `x[k+1] = (1 − β) x[k−1] + β f(x[k])` from `x[−1] = x[0] = z0`; it can stop after any of them, and
the last two states give all earlier ones: `x[k−1] = (x[k+1] − β f(x[k])) / (1 − β)`.

Autograd builds the graph of all evaluations, so gradients reach whatever the map closes over, leaf or not. What that
graph would save is dropped, as by PyTorch's checkpoints, which repeat an evaluation when the backward pass comes to it;
here its argument is not stored either, but reconstructed from the evaluation after it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from equilibria.devices import Autocast, widest
from equilibria.gradients.adjoint import Tensors
from equilibria.gradients.base import Attached, Gradient, Solve
from equilibria.gradients.compensated import Pair, scale_and_add, subtract_and_divide
from equilibria.gradients.recomputed import Keep
from equilibria.ranges import above, probability, whole
from equilibria.solvers import AdjointReport, Map, Solver, State, Status
from equilibria.solvers.residual import Gauge, norm
from equilibria.solvers.solution import worst
from equilibria.solvers.state import Packing, Scope, detach, leaves, leaves_as, rebuild

Pairs = tuple[Pair, ...]
"""A state in twice the digits of float64, leaf by leaf."""


@dataclass(frozen=True)
class Reversible(Gradient):
    """Solve by a reversible iteration, and take the exact gradient of what it computed, converged or not. Where
    gradients are off, the solver solves as ever.

    Of the solver `tol`, `criterion` and `scope` are used and, where `steps` is None, `max_evaluations` and
    `check_every`. A backward pass repeats every evaluation once and stores one at a time; each step leaves a few
    kilobytes of graph. States are carried in twice the digits of float64, since an evaluation forgets
    `log2(1 / (1 − damping)) / 2` bits of them: 65 evaluations of float32 states, or 45 of float64 ones, come back to
    the last digit at a damping of 0.8, and 150 or 100 at 0.5. For more, set `keep_every`. The backward pass measures
    how far the reconstructed start is from `z0` (`solution.adjoint.reconstruction`) and, by the share of the gradient
    that still arrives there, what that does to the gradient (`solution.adjoint.residual`).

    The iteration converges where the eigenvalues of the map's Jacobian are within the ellipse with half-axes 1 (real)
    and `(2 − damping) / damping` (imaginary); like plain iteration, not beyond −1.

    In the backward pass whatever the map reads must still be the same (after `torch.func.functional_call` it is not);
    random numbers are drawn again. A second derivative keeps every evaluation.

    Args:
        steps: the exact number of evaluations; two are a step of the paper. None takes the solver's `max_evaluations`
            and stops before that once all groups are within its tolerance, so that groups see how long others take. The
            gradient knows only the steps taken: from a start near the solution, fix their number.
        damping: `β`, `0 < β < 1`; larger converges sooner and forgets more.
        keep_every: also keep the pair of states after every so many evaluations, and go back from there: errors grow no
            further than that. None keeps only the last, whatever the number of steps.
        bound: of `solution.adjoint.residual`, beyond which `solution.adjoint.status` is `IRREVERSIBLE`.
    """

    steps: int | None = None
    damping: float = 0.8
    keep_every: int | None = None
    bound: float = 1e-3
    begins_at: ClassVar = "start"

    @property
    def in_transforms(self) -> bool:
        return False

    def __post_init__(self) -> None:
        whole(1, steps=self.steps, keep_every=self.keep_every)
        above(0, damping=self.damping, bound=self.bound)
        probability(damping=self.damping)

    def attach(self, f: Map, state: State, solve: Solve) -> Attached:
        if any(leaf.is_complex() for leaf in leaves(state)):
            return _as_complex(state, self.attach(lambda z: _as_real(f(_like(state, z))), _as_real(state), solve))
        solver = solve.solver
        gauge = Gauge(Packing.of(detach(state), solver.scope), solver.criterion, solver.tol)
        trail = _Trail(f, detach(state), self.damping, solver.scope, self.bound, solve.report)
        limit = solver.max_evaluations if self.steps is None else self.steps
        attached = Attached(state)
        with torch.enable_grad(), set_checkpoint_early_stop(False):
            here = trail.carried(state)
            before, number = here, 0
            while number < limit:
                z = attached.value
                if number in solve.wanted:
                    attached.iterates[number] = z
                attached.tracked = z, trail.evaluate(number, z)
                attached.first = attached.first or attached.tracked
                value = attached.tracked[1]
                if self.steps is None and _within(solver, gauge, number, z, value):
                    attached.f_value = detach(value)
                    break
                before, here = here, trail.advance(number + 1, before, value)
                attached.value, number = trail.state(here), number + 1
                if self.keep_every is not None and number % self.keep_every == 0:
                    trail.keep(number, here, before)
        trail.keep(number, here, before)
        attached.steps = number
        return attached


def _as_real(state: State) -> State:
    """Complex numbers as pairs of reals."""
    parts = (torch.view_as_real(leaf.resolve_conj()) if leaf.is_complex() else leaf for leaf in leaves(state))
    return rebuild(state, parts)


def _like(z0: State, state: State) -> State:
    """Pairs of reals as complex numbers, where `z0` has these."""
    pairs = zip(leaves(z0), leaves_as(z0, state), strict=True)
    return rebuild(
        z0, (torch.view_as_complex(part.contiguous()) if leaf.is_complex() else part for leaf, part in pairs)
    )


def _as_complex(z0: State, attached: Attached) -> Attached:
    """A state attached to the map of pairs as one attached to the map of complex numbers."""

    def both(evaluation: tuple[State, State] | None) -> tuple[State, State] | None:
        return None if evaluation is None else (_like(z0, evaluation[0]), _like(z0, evaluation[1]))

    return replace(
        attached,
        value=_like(z0, attached.value),
        tracked=both(attached.tracked),
        first=both(attached.first),
        f_value=None if attached.f_value is None else _like(z0, attached.f_value),
        iterates={number: _like(z0, state) for number, state in attached.iterates.items()},
    )


@torch.no_grad()
def _within(solver: Solver, gauge: Gauge, number: int, z: State, value: State) -> bool:
    """Whether every group is within the tolerance after the first evaluation; the host waits for the device."""
    here, f_here = gauge.packing.pack(detach(z)), gauge.packing.pack(detach(value))
    if number == 0:
        here, f_here = gauge.begin(here, f_here)
    residual, size, difference = gauge.measure(f_here, f_here - here)
    gauge.note(difference)
    if number == 0 or (number + 1) % solver.check_every:
        return False
    return bool(((residual <= solver.tol) & ~gauge.grown(size, difference)).all())


@dataclass(frozen=True)
class _Position:
    """A place on the way: the iterates `number` and `number − 1`."""

    number: int
    here: Pairs
    before: Pairs


@dataclass(frozen=True)
class _Arriving:
    """The norms of the gradient at iterate `number`, and the largest so far in a backward pass; per group."""

    number: int
    size: Tensor
    largest: Tensor


@dataclass(eq=False)
class _Trail:
    """The iteration forwards, the pairs it kept, and the way back from there. The backward pass asks for the iterates
    in descending order; what it asks for after that begins another pass."""

    f: Map
    start: State
    damping: float
    scope: Scope
    bound: float
    report: AdjointReport
    _kept: dict[int, Tensor] = field(default_factory=dict)
    _taken: dict[int, _Position] = field(default_factory=dict)
    _at: _Position | None = None
    _value: tuple[int, State] | None = None
    _arriving: _Arriving | None = None
    _worst: tuple[Tensor, Tensor] | None = None

    def __post_init__(self) -> None:
        like = next(leaves(self.start))
        self._token, self._carrier = like.new_empty(0), widest(like.device)
        # In the carrier's arithmetic, so that errors and gradients of any size have a norm.
        self._packing = Packing.of(rebuild(self.start, (high for high, _ in self.carried(self.start))), self.scope)
        # Rounded to the carrier's dtype.
        self._rest = float(torch.tensor(1.0 - self.damping, dtype=self._carrier))
        self._autocast = Autocast(like)

    def carried(self, z: State) -> Pairs:
        """A state as pairs."""
        return tuple((high, torch.zeros_like(high)) for high in (leaf.to(self._carrier) for leaf in leaves(z)))

    def state(self, pairs: Pairs) -> State:
        """What the map sees of them."""
        like = leaves(self.start)
        return rebuild(self.start, (high.to(leaf.dtype) for (high, _), leaf in zip(pairs, like, strict=True)))

    def evaluate(self, number: int, z: State) -> State:
        """`f` at iterate `number`, with a graph that saves nothing."""
        return checkpoint(_Evaluation(self, number, z), self._token, use_reentrant=False)

    def advance(self, number: int, before: Pairs, value: State) -> Pairs:
        """Iterate `number`, from the one two before it and the map's value at the one between."""
        highs, lows = zip(*before, strict=True)
        values = (v.to(self._carrier) for v in leaves_as(self.start, value))
        parts = _Advance.apply(self, number, *highs, *lows, *values)
        return tuple(zip(parts[: len(highs)], parts[len(highs) :], strict=True))

    def step(self, before: Pairs, values: Sequence[Tensor]) -> Pairs:
        """`(1 − β) · before + β · values`."""
        pairs = zip(before, values, strict=True)
        return tuple(scale_and_add(pair, self._rest, self.damping * v) for pair, v in pairs)

    def step_back(self, after: Pairs, values: Sequence[Tensor]) -> Pairs:
        """`(after − β · values) / (1 − β)`."""
        pairs = zip(after, values, strict=True)
        return tuple(subtract_and_divide(pair, self._rest, self.damping * v) for pair, v in pairs)

    def pulled(self, number: int, incoming: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The gradient at iterate `number` as those of the two that `step` made it from."""
        with torch.no_grad():
            size, before = norm(self._packing.pack(rebuild(self.start, iter(incoming)))), self._arriving
            largest = size
            if before is not None and number < before.number:  # of the same pass
                largest = torch.maximum(size, before.largest)
            self._arriving = _Arriving(number, size, largest)
            if number == 1:
                self._finish()
        return [self._rest * part for part in incoming], [self.damping * part for part in incoming]

    def keep(self, number: int, here: Pairs, before: Pairs) -> None:
        """Keep a pair to go back from, where there is a graph that may need it."""
        if any(high.requires_grad for high, _ in here):
            self._kept[number] = Keep.of(*(part for pair in (*here, *before) for part in pair))

    @torch.no_grad()
    def back_at(self, number: int, tracked: tuple[bool, ...]) -> State:
        """Iterate `number` again: reconstructed, except for the start."""
        state = self.state(self._reach(number)) if number else self.start
        again = zip(leaves(state), tracked, strict=True)
        return rebuild(state, (leaf.detach().requires_grad_(wanted) for leaf, wanted in again))

    def _reach(self, number: int) -> Pairs:
        """Go back to an iterate."""
        at = self._at
        if at is None or number > at.number:
            self._value = self._worst = None
            at = self._taken_up(min(kept for kept in self._kept if kept >= number))
        while at.number > number + 1:
            at = self._back_from(at)
        self._at = at
        return at.here if at.number == number else at.before

    def _finish(self) -> None:
        """Compare the reconstructed start of a pass with the start, and report the worst comparison."""
        start = self.carried(self.start)
        self._compare(start if self._at is None else self._reach(0), start)
        assert self._worst is not None
        off, residual = self._worst
        failed = self.report.status not in (None, Status.CONVERGED)
        within = bool((residual <= self.bound).all())
        if not (failed and within):
            self.report.status = Status.CONVERGED if within else Status.IRREVERSIBLE
            self.report.residual, self.report.reconstruction = residual, off
        if not within and self.report.on_failure is not None:
            self.report.on_failure(
                f"iterates were not reconstructed, so this gradient may be off by {worst(residual):.1e}, beyond the "
                f"bound {self.bound:.1e}; give Reversible(keep_every=...), fewer steps or less damping"
            )
        self._at = self._value = self._worst = None
        self._taken.clear()

    def note(self, number: int, value: State) -> None:
        """The map's value at iterate `number`, which the way back needs next."""
        self.report.evaluations += 1
        self._value = (number, detach(value)) if self._at is not None else None

    def _taken_up(self, number: int) -> _Position:
        """A position that was kept; autograd gives what it saved once in a pass."""
        if number in self._taken:
            return self._taken[number]
        node = self._kept[number].grad_fn
        assert node is not None
        flat: Tensors = node.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
        pairs = tuple(zip(flat[::2], flat[1::2], strict=True))
        self._taken[number] = _Position(number, pairs[: len(pairs) // 2], pairs[len(pairs) // 2 :])
        return self._taken[number]

    def _back_from(self, at: _Position) -> _Position:
        """The position one iterate back, by the map's value at the one before the last."""
        number, value = self._value or (None, None)
        self._value = None
        if number != at.number - 1:  # that evaluation was not asked for, as for a loss on an iterate alone
            value = self._evaluate_again(at.before)
        values = [v.to(self._carrier) for v in leaves_as(self.start, value)]
        found = _Position(at.number - 1, at.before, self.step_back(at.here, values))
        if found.number not in self._kept:
            return found
        kept = self._taken_up(found.number)
        self._compare(found.before, kept.before)
        return kept

    def _evaluate_again(self, pairs: Pairs) -> State:
        """`f`, with gradients and autocast as in the forward pass: the same kernels, so the same digits."""
        self.report.evaluations += 1
        # Nothing is differentiated here, and the hooks of the evaluation being repeated must not see it.
        unseen = saved_tensors_hooks(lambda _: None, lambda dropped: dropped)
        with torch.enable_grad(), unseen, self._autocast.again():
            z = self.state(pairs)
            return detach(self.f(rebuild(z, (leaf.detach().requires_grad_() for leaf in leaves(z)))))

    def _compare(self, found: Pairs, kept: Pairs) -> None:
        """Note how far a reconstructed state is off and how much of the gradient that affects."""
        misses = ((a - b) + (low - rest) for (a, low), (b, rest) in zip(found, kept, strict=True))
        end = self._taken_up(max(self._kept)).here
        miss, size, scale = (
            norm(self._packing.pack(rebuild(self.start, parts)))
            for parts in (misses, (high for high, _ in kept), (high for high, _ in end))
        )
        off = torch.nan_to_num(_ratio(miss, torch.maximum(size, scale)), torch.inf, torch.inf).float()
        share = _ratio(self._arriving.size, self._arriving.largest) if self._arriving is not None else 1.0
        residual = torch.nan_to_num(off * share, torch.inf, torch.inf).float()
        if self._worst is not None:
            off, residual = torch.maximum(off, self._worst[0]), torch.maximum(residual, self._worst[1])
        self._worst = off, residual


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """`part / whole`, and `part` where the whole is zero."""
    return torch.where(whole > 0, part / whole, part)


class _Evaluation:
    """One evaluation of the map: at the state given to it and, when the backward pass asks, at its reconstruction."""

    def __init__(self, trail: _Trail, number: int, z: State) -> None:
        self._trail, self._number = trail, number
        self._z: State | None = z
        self._tracked = tuple(leaf.requires_grad for leaf in leaves(z))

    def __call__(self, _: Tensor) -> State:
        if self._z is not None:
            z, self._z = self._z, None
            return self._trail.f(z)
        value = self._trail.f(self._trail.back_at(self._number, self._tracked))
        self._trail.note(self._number, value)
        return value


class _Advance(torch.autograd.Function):
    """`_Trail.step`; the gradient goes by `high`, and nothing is saved."""

    @staticmethod
    def forward(ctx: Any, trail: _Trail, number: int, *parts: Tensor) -> Tensors:
        ctx.trail, ctx.number = trail, number
        third = len(parts) // 3
        pairs = trail.step(tuple(zip(parts[:third], parts[third : 2 * third], strict=True)), parts[2 * third :])
        highs, lows = zip(*pairs, strict=True)
        ctx.mark_non_differentiable(*lows)
        return *highs, *lows

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        highs = incoming[: len(incoming) // 2]
        kept, taken = ctx.trail.pulled(ctx.number, highs)
        return None, None, *kept, *(None for _ in highs), *taken
