"""Speculative decoding at an equilibrium: tokens are guessed from states that are still being solved.

A text that is written alone is solved token after token, and each of its evaluations is a small one. Here a window of
tokens is evaluated at once: the text's last one, and those that are guessed after it. After every round of evaluations
each state says which token may follow, and where that is another than the one guessed, the window ends with it anew. A
state counts once it and all before it have converged, so that the text is one without guesses, as far as the tolerance
tells texts apart. There is no second model, as in Leviathan et al. 2022, arXiv:2211.17192, and no whole pass for each
renewal, as in Santilli et al. 2023, arXiv:2305.10427: guesses are those of early iterates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from equilibria.cells import Cache
from equilibria.depths import Depth, Equilibrium
from equilibria.errors import UserError
from equilibria.models.decoding import CachedContinuation, Continuation, Solved
from equilibria.models.sampling import Sampler
from equilibria.ranges import whole
from equilibria.solvers import CountedMap, Groups, Point, Solver
from equilibria.solvers.residual import Gauge, norm
from equilibria.solvers.state import Packing

if TYPE_CHECKING:
    from equilibria.models.language_model import LanguageModel

_EVALUATIONS = 3  # of a round: with fewer, guesses are too often wrong; with more, a guess waits for too many


@dataclass
class _Window:
    """The text's last token and those guessed after it, W in all.

    Attributes:
        tokens: their ids.
        states_1WD: what is known of their states; of the last ones nothing, where there are fewer.
        evaluations_W: of each state.
        scale_1W, peak_1W: how large each state was at first, and how far it has moved at most; see `Gauge`.
        waited: evaluations of the first state since all before it count.
        final: how many states count, the first ones.
        hidden_1WD: what the model makes of them.
        residual_1W, converged_1W: by the last evaluation.
    """

    tokens: list[int]
    evaluations_W: list[int]
    states_1WD: Tensor
    scale_1W: Tensor
    peak_1W: Tensor
    waited: int = 0
    final: int = 0
    hidden_1WD: Tensor | None = None
    residual_1W: Tensor | None = None
    converged_1W: Tensor | None = None

    @classmethod
    def of(cls, token: int, like_BV: Tensor) -> _Window:
        """Of a token of which nothing is known."""
        nothing = like_BV.new_empty(1, 0)
        return cls([token], [0], like_BV.new_empty(1, 0, 0), nothing, nothing)

    def cut(self, length: int) -> None:
        """Forget the tokens from a place on."""
        del self.tokens[length:], self.evaluations_W[length:]
        self.final = min(self.final, length)
        self._each(slice(length))

    def shift(self) -> None:
        """Forget the first token, which has been read."""
        del self.tokens[0], self.evaluations_W[0]
        self.final -= 1
        self._each(slice(1, None))

    def _each(self, places: slice) -> None:
        """Keep what is known of some places."""
        for name in ("states_1WD", "scale_1W", "peak_1W", "hidden_1WD", "residual_1W", "converged_1W"):
            setattr(self, name, getattr(self, name)[:, places])


class Speculation:
    """Reads the tokens of a single text, and guesses those after them.

    Args:
        model: in evaluation mode.
        depth: an equilibrium by Picard or Anderson, whose groups are tokens or prefixes.
        guesses: tokens of the window beyond the text, at most.

    Raises:
        ValueError: `guesses` is below 1.
        UserError: the depth solves otherwise, or not at all.
    """

    def __init__(self, model: LanguageModel, depth: Depth, guesses: int) -> None:
        whole(1, guesses=guesses)
        self._solver = solver_of_tokens(depth, "tokens are guessed ahead")
        self._model, self._depth, self._most = model, depth, guesses + 1
        self._cache: Cache | None = None
        self._read = 0
        self._window: _Window | None = None

    @torch.no_grad()
    def read(self, where: Continuation, sampler: Sampler) -> CachedContinuation | None:
        """Where the text stands after the token that was drawn last, which is used up. None where that takes the usual
        way: states that are not finite, or a cache that is about to forget."""
        assert isinstance(where, CachedContinuation)
        cache = where.cache
        assert isinstance(cache, Cache)
        if cache.limit is not None and cache.length + self._most > cache.limit:
            return None
        window = self._window if cache is self._cache and cache.tokens == self._read else None
        if window is None or window.tokens[:1] != [sampler.token]:
            window = _Window.of(sampler.token, where.logits_BV)
        self._cache, self._window = cache, window
        while not window.final:
            if not self._round(window, cache, sampler):
                self._cache = None
                return None
        assert window.hidden_1WD is not None
        assert window.residual_1W is not None
        assert window.converged_1W is not None
        evaluations_B = torch.tensor(window.evaluations_W[:1], dtype=torch.int32, device=where.logits_BV.device)
        solved = Solved(evaluations_B, window.converged_1W[:, 0], window.residual_1W[:, 0].float())
        logits_BV = self._model.embedding.logits(window.hidden_1WD[:, 0])
        cache.advance(window.states_1WD[:, :1])
        self._read = cache.tokens
        window.shift()
        return CachedContinuation(where.model, where.depth, logits_BV, solved, cache)

    def _round(self, window: _Window, cache: Cache, sampler: Sampler) -> bool:
        """Evaluates the window, and renews its guesses; False where a state is not finite."""
        known = window.states_1WD.shape[1]
        tokens_1W = torch.tensor([window.tokens], device=window.scale_1W.device)
        evaluate, finish = self._model.over(tokens_1W, cache, self._depth)
        z_1WD = evaluate.start
        if known:
            z_1WD = torch.cat([window.states_1WD, z_1WD[:, known:]], dim=1)
        groups, apply = Groups("token"), CountedMap(evaluate, Packing.of(z_1WD, "token"), _EVALUATIONS + 1, 1)
        arguments, values, memory = [z_1WD], [evaluate(z_1WD)], self._solver.init(z_1WD, groups)
        while True:
            difference_1WD = values[-1] - arguments[-1]
            point = Point(arguments[-1], values[-1], difference_1WD, None, apply)
            proposal_1WD, memory = self._solver.step(memory, point, groups)
            if len(values) == _EVALUATIONS:
                break
            arguments.append(proposal_1WD)
            values.append(evaluate(proposal_1WD))
        evaluate.keep()
        self._weigh(window, known, torch.cat(arguments), torch.cat(values))
        assert window.residual_1W is not None
        assert window.converged_1W is not None
        window.evaluations_W = [count + _EVALUATIONS for count in window.evaluations_W]
        window.waited += _EVALUATIONS
        if not all(residual < torch.inf for residual in window.residual_1W[0].tolist()):
            return False
        converged = window.converged_1W[0].tolist()
        if window.waited > self._solver.max_evaluations:
            converged[0] = True  # or as far from it as its evaluations have brought it
        window.final = next((place for place, one in enumerate(converged) if not one), len(converged))
        window.waited = 0 if window.final else window.waited
        # A state that counts is the one that was measured, whose keys and values the cache holds.
        window.states_1WD = torch.cat([arguments[-1][:, : window.final], proposal_1WD[:, window.final :]], dim=1)
        window.hidden_1WD = finish(window.states_1WD)
        self._guess(window, sampler.guesses(self._model.embedding.logits(window.hidden_1WD)[0]))
        return True

    def _weigh(self, window: _Window, known: int, arguments_KWD: Tensor, values_KWD: Tensor) -> None:
        """Takes in how large the values of this round are, and how far from what they are of; nothing was known of the
        window's tokens from the place `known` on."""
        norms_KW, moved_KW = norm(values_KWD), norm(values_KWD - arguments_KWD)
        first_1W = torch.maximum(norm(arguments_KWD[:1, known:]), norms_KW[:1, known:])
        peak_1W = moved_KW.amax(dim=0, keepdim=True)
        peak_1W[:, :known] = torch.maximum(window.peak_1W, peak_1W[:, :known])
        window.scale_1W, window.peak_1W = torch.cat([window.scale_1W, first_1W], dim=1), peak_1W
        gauge = Gauge(Packing.of(values_KWD[-1:], "token"), self._solver.criterion, self._solver.tol)
        gauge.scale, gauge.peak = window.scale_1W, window.peak_1W
        size_1W, last_1W = norms_KW[-1:], moved_KW[-1:]
        window.residual_1W = gauge.ratio(size_1W, last_1W)
        window.converged_1W = (window.residual_1W <= self._solver.tol) & ~gauge.grown(size_1W, last_1W)

    def _guess(self, window: _Window, guesses: list[int]) -> None:
        """Renews the guesses; one more where none has changed."""
        for place, token in enumerate(guesses, start=1):
            if window.tokens[place : place + 1] != [token]:
                window.cut(place)
                if place < self._most:
                    window.tokens.append(token)
                    window.evaluations_W.append(0)
                return


def solver_of_tokens(depth: Depth, what: str) -> Solver:
    """The solver of a depth at which each token can be followed alone; a UserError, of what is wanted with it, where
    there is none."""
    solver = depth.eval_solver if isinstance(depth, Equilibrium) and depth.restarts is None else None
    causal = solver is not None and solver.short and solver.scope in ("token", "prefix")
    if solver is None or not causal or solver.draft is not None or solver.fallback is not None:
        found = type(depth).__name__ if solver is None else repr(solver)
        raise UserError(
            f"{what} only at an equilibrium whose eval_solver is Picard or Anderson alone, of scope "
            f'"prefix" or "token"; found {found}'
        )
    return solver
