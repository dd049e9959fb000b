"""Texts of a run's model, for prompts: written together, told one after another."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import randrange

from equilibria.errors import UserError
from equilibria.inference.effort import Effort, depth_at
from equilibria.inference.loading import LoadedRun, load_run
from equilibria.inference.writing import FinishReason, Text, TextRequest, Writer, Written
from equilibria.models.sampling import Sampling

Say = Callable[[str, int | None], None]
"""Receives each piece of a text and its evaluations; None for a prompt, and for explicit depths."""


@dataclass(frozen=True)
class Sample:
    """A text that was written, without its prompt, and the seed that draws it again."""

    prompt: str
    text: str
    seed: int
    finish_reason: FinishReason


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
    say: Say = lambda text, evaluations: None,
) -> list[Sample]:
    """Continues prompts with a run's model, all together.

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
        say: receives one text after another, each after its prompt; the current one as it is written.

    Raises:
        UserError: the tokenizer cannot encode a prompt, a number is out of its range, or the effort is limited and the
            model has no solver.
    """
    loaded = run if isinstance(run, LoadedRun) else load_run(run)
    seed = randrange(2**31) if seed is None else seed
    prompts = [prompts] if isinstance(prompts, str) else prompts
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    tokenizer, turns = loaded.tokenizer, _Turns(say)
    writer = Writer(loaded.model, tokenizer, loaded.window, depth_at(loaded.model, effort or Effort()))
    for number, prompt in enumerate(prompts):
        start = tokenizer.encode(prompt)
        try:
            request = TextRequest(
                prompt=tuple(start or [tokenizer.eos]),
                max_new_tokens=max_new_tokens,
                sampling=sampling or Sampling(),
                seed=seed + number * samples,
                copies=samples,
                stop=stop,
                stop_at_end=stop_at_end,
            )
        except ValueError as problem:
            raise UserError(str(problem)) from problem
        turns.add(writer.join(request), tokenizer.decode(start))
    while writer.texts:
        turns.add(writer.step())
    return [
        Sample(prompts[number // samples], text, seed + number, reason)
        for number, (text, reason) in enumerate(turns.texts())
    ]


class _Turns:
    """Texts that are written together and shown one after the other; those out of turn wait."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._pieces: dict[Text, list[tuple[str, int | None]]] = {}
        self._ends: dict[Text, FinishReason] = {}
        self._turn = 0
        self._said = 0

    def add(self, written: Written, prompt: str = "") -> None:
        for text, piece in written:
            self._pieces.setdefault(text, [(prompt, None)]).append((piece.text, piece.evaluations))
            if piece.finish is not None:
                self._ends[text] = piece.finish
        self._speak()

    def texts(self) -> list[tuple[str, FinishReason]]:
        """What was written, without prompts, and why each text ended."""
        return [("".join(said for said, _ in pieces[1:]), self._ends[text]) for text, pieces in self._pieces.items()]

    def _speak(self) -> None:
        texts = list(self._pieces)
        while self._turn < len(texts):
            text = texts[self._turn]
            for said, evaluations in self._pieces[text][self._said :]:
                self._say(said, evaluations)
            self._said = len(self._pieces[text])
            if text not in self._ends:
                return
            self._turn, self._said = self._turn + 1, 0
            if self._turn < len(texts):
                self._say("\n---\n", None)
