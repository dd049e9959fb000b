"""Texts of a run's model, for prompts: written together, told one after another."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import randrange

from equilibria.data.progress import UNWATCHED, Progress, counted
from equilibria.errors import UserError
from equilibria.inference.compiling import compile_run
from equilibria.inference.effort import Effort, depth_at
from equilibria.inference.loading import LoadedRun, load_run
from equilibria.inference.writing import FinishReason, Piece, Text, TextRequest, Writer, Written
from equilibria.models.decoding import warn_of_failures
from equilibria.models.sampling import Sampling
from equilibria.ranges import instance

Say = Callable[[str, int | None], None]
"""Receives each piece of a text and its evaluations; None for a prompt, and for explicit depths."""


@dataclass(frozen=True)
class Sample:
    """A text that was written.

    Attributes:
        prompt: what it continues; `text` is without it.
        seed: draws it again.
        finish_reason: why it ended.
        unconverged: how many of its tokens were drawn after a solve that did not converge; None for explicit depths.
        residual: the largest of the solves behind its tokens; None for explicit depths.
    """

    prompt: str
    text: str
    seed: int
    finish_reason: FinishReason
    unconverged: int | None
    residual: float | None = field(compare=False)  # its rounding depends on what is written beside it


def generate(
    run: LoadedRun | Path | str,
    prompts: str | Sequence[str] = "",
    *,
    samples: int = 1,
    max_new_tokens: int = 128,
    sampling: Sampling | None = None,
    seed: int | None = None,
    stop: str | Sequence[str] = (),
    stop_at_end: bool = False,
    effort: Effort | None = None,
    guesses: int = 0,
    compiled: bool = False,
    say: Say = lambda text, evaluations: None,
    progress: Progress = UNWATCHED,
) -> list[Sample]:
    """Continues prompts with a run's model, all together. A `ConvergenceWarning` counts solves that did not converge.

    Args:
        run: the run, or its folder.
        prompts: a text to continue, or several; an empty one is the start of a passage.
        samples: texts to write for each.
        max_new_tokens: of each text, at most.
        sampling: how tokens are drawn; None for temperature 1.
        seed: of the first text, one more for each text after it; None for a random one.
        stop: a string before which a text ends, or several.
        stop_at_end: whether it ends at the end of a passage, too.
        effort: evaluations per token, where other than the recipe says.
        guesses: tokens that are guessed ahead at most, of a text that is written alone; see `TokenModel.guesser`.
        compiled: whether a step of one token is compiled, for a text that is written alone; see `compile_run`.
        say: receives one text after another, each after its prompt; the current one as it is written.
        progress: of several prompts that are read, and of the tokens that are written then.

    Raises:
        TypeError: an argument is of another kind.
        UserError: the model continues no text, the tokenizer cannot encode a prompt, a number is out of its range, the
            effort is limited and the model has no solver, tokens are to be guessed or compiled where that cannot be, or
            the model's states or logits are not finite.
    """
    loaded = run if isinstance(run, LoadedRun) else load_run(run)
    loaded.check_continues()
    if compiled and guesses:
        raise UserError("compiled steps read token after token, and guesses several at once; take one of them")
    instance(Sampling | None, "Sampling(temperature=0.8)", sampling=sampling)
    instance(Effort | None, "Effort(tolerance=1e-2)", effort=effort)
    seed = randrange(2**31) if seed is None else seed
    prompts = [prompts] if isinstance(prompts, str) else prompts
    if not isinstance(prompts, Sequence) or not all(isinstance(prompt, str) for prompt in prompts):
        raise TypeError(f"prompts must be a text or a list of texts; found {prompts!r:.80}")
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    tokenizer, turns = loaded.tokenizer, _Turns(say)
    depth = depth_at(loaded.model, effort or Effort())
    if compiled:
        compile_run(loaded, progress)
    writer = Writer(loaded.model, tokenizer, loaded.window, depth, guesses)
    starts = [tokenizer.encode(prompt) for prompt in prompts]
    try:
        requests = [
            TextRequest(
                prompt=tuple(start or [tokenizer.eos]),
                max_new_tokens=max_new_tokens,
                sampling=sampling or Sampling(),
                seed=seed + number * samples,
                copies=samples,
                stop=stop,
                stop_at_end=stop_at_end,
            )
            for number, start in enumerate(starts)
        ]
    except ValueError as problem:
        raise UserError(str(problem)) from problem
    several = progress if len(requests) > 1 else UNWATCHED
    with several.bar("reading the prompts", len(requests), "prompts") as advance:
        joined = [writer.join(request) for request in counted(requests, advance)]
    for start, written in zip(starts, joined, strict=True):
        turns.add(written, tokenizer.decode(start))
    with progress.bar("writing", max_new_tokens * samples * len(requests), "tokens") as advance:
        while writer.texts:
            written = writer.step()
            turns.add(written)
            advance(len(written))
    found = [
        Sample(prompts[number // samples], text, seed + number, reason, unconverged, residual)
        for number, (text, reason, unconverged, residual) in enumerate(turns.texts())
    ]
    warn_of_failures(sum(one.unconverged or 0 for one in found), sum(len(text.tokens) for text in turns.pieces))
    return found


class _Turns:
    """Texts that are written together and shown one after the other; those out of turn wait.

    Attributes:
        pieces: of each text.
    """

    def __init__(self, say: Say) -> None:
        self.pieces: dict[Text, list[Piece]] = {}
        self._say = say
        self._sayings: dict[Text, list[tuple[str, int | None]]] = {}
        self._turn = 0
        self._said = 0

    def add(self, written: Written, prompt: str = "") -> None:
        for text, piece in written:
            if isinstance(piece, Exception):
                raise piece
            self.pieces.setdefault(text, []).append(piece)
            self._sayings.setdefault(text, [(prompt, None)]).append((piece.text, piece.evaluations))
        self._speak()

    def texts(self) -> Iterator[tuple[str, FinishReason, int | None, float | None]]:
        """What was written, without prompts, why it ended, how many of its tokens' solves did not converge, and the
        largest residual of all."""
        for pieces in self.pieces.values():
            finish = pieces[-1].finish
            assert finish is not None
            solved = [piece.converged for piece in pieces if piece.converged is not None]
            residual = max((piece.residual for piece in pieces if piece.residual is not None), default=None)
            yield "".join(piece.text for piece in pieces), finish, solved.count(False) if solved else None, residual

    def _speak(self) -> None:
        texts = list(self.pieces)
        while self._turn < len(texts):
            text = texts[self._turn]
            for said, evaluations in self._sayings[text][self._said :]:
                self._say(said, evaluations)
            self._said = len(self._sayings[text])
            if self.pieces[text][-1].finish is None:
                return
            self._turn, self._said = self._turn + 1, 0
            if self._turn < len(texts):
                self._say("\n---\n", None)
