"""`equilibria generate`."""

import json as json_format
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from random import randrange
from typing import Annotated

import torch
from cyclopts import App, Parameter
from cyclopts.validators import Number
from rich.console import Console

from equilibria.cli.colours import legend, print_piece
from equilibria.data import Tokenizer
from equilibria.errors import UserError
from equilibria.inference.effort import Effort, use
from equilibria.inference.loading import LoadedRun, load_run
from equilibria.models.sampling import Sampling

command = App(name="generate")

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what bytes that are no character (yet) decode to


@dataclass(frozen=True, kw_only=True)
class Draw:
    """How a text is drawn."""

    prompt: str = ""
    """The text to continue; left out: the start of a passage."""
    max_new_tokens: Annotated[int, Parameter(validator=Number(gte=1))] = 128
    """Tokens to write."""
    temperature: Annotated[float, Parameter(validator=Number(gte=0))] = 0.8
    """Above 1 is more varied, below 1 less; 0 takes the most likely token."""
    top_k: Annotated[int | None, Parameter(validator=Number(gte=1))] = None
    """Draw from so many tokens at most."""
    top_p: Annotated[float | None, Parameter(validator=Number(gt=0, lte=1))] = None
    """Draw from the smallest set of tokens with this probability."""
    seed: Annotated[int, Parameter(validator=Number(gte=0))] = field(default_factory=lambda: randrange(2**31))
    """Makes the draw repeatable; left out: a random one."""
    tolerance: Annotated[float | None, Parameter(validator=Number(gt=0))] = None
    """Residual at which a token has converged; left out: as the recipe's eval_solver says."""
    max_evaluations: Annotated[int | None, Parameter(validator=Number(gte=1))] = None
    """Evaluations of the cell per token, at most; left out: as the recipe's eval_solver says."""


@command.default
def generate(
    run: Path,
    /,
    *,
    draw: Annotated[Draw | None, Parameter(name="*")] = None,
    checkpoint: str = "best",
    show_evaluations: bool = False,
    json: bool = False,
) -> int:
    """Write text with a run's model, as it comes; the last text is kept in the run's sample.json.

    Args:
        run: the run folder.
        draw: how.
        checkpoint: "best" by validation loss, "last" or "step-N".
        show_evaluations: colour each token by the evaluations that its prediction took.
        json: print text and settings as one JSON object and nothing else.
    """
    draw, loaded = draw or Draw(), load_run(run, checkpoint)
    if show_evaluations and not json:
        _print_coloured(loaded, draw)
        return 0
    text = write_sample(loaded, draw, (lambda *_: None) if json else _print_now)
    print(json_format.dumps({**asdict(draw), "text": text}) if json else "")
    return 0


Say = Callable[[str, int | None], None]
"""Called with each piece of a text and the evaluations behind it; None for a prompt, and for explicit depths."""


def write_sample(loaded: LoadedRun, draw: Draw, say: Say) -> str:
    """Continues a prompt and keeps the text in the run folder's sample.json.

    Args:
        loaded: the model and its tokenizer.
        draw: prompt, length, sampling and effort.
        say: called with each piece of text, the prompt first.

    Returns:
        The text without the prompt.

    Raises:
        UserError: the effort is limited, and the model has no solver.
    """
    tokenizer, model = loaded.tokenizer, loaded.model
    use(model, Effort(tolerance=draw.tolerance, max_evaluations=draw.max_evaluations))
    start = tokenizer.encode(draw.prompt)
    stream = TextStream(tokenizer, say)
    stream.write(start)
    tokens = model.stream(
        torch.tensor([start or [tokenizer.eos]]),
        Sampling(draw.temperature, draw.top_k, draw.top_p),
        draw.seed,
        window=loaded.recipe.training.segment_length + model.memory_length,
    )
    for drawn in islice(tokens, draw.max_new_tokens):
        spent = None if drawn.evaluations_BL is None else int(drawn.evaluations_BL[0, -1])
        stream.write(drawn.token_B.tolist(), spent)
    stream.finish()
    text = stream.text[len(tokenizer.decode(start)) :]
    sample = json_format.dumps({**asdict(draw), "text": text})
    loaded.folder.sample.write_text(sample + "\n", encoding="utf-8")
    return text


def _print_coloured(loaded: LoadedRun, draw: Draw) -> None:
    """The text in shades, and below it what they mean."""
    console, counts = Console(highlight=False), []

    def say(text: str, evaluations: int | None) -> None:
        print_piece(console, text, evaluations)
        if evaluations is not None:
            counts.append(evaluations)

    write_sample(loaded, draw, say)
    console.print()
    if not counts:
        raise UserError("--show-evaluations has nothing to show: this model has a fixed depth and no solver")
    console.print(legend(counts))


class TextStream:
    """Decodes tokens as they come; a character whose bytes are not all there yet is held back.

    Args:
        tokenizer: whose tokens these are.
        say: called with each piece of text and the evaluations of its last token; the pieces joined are the text of
            all tokens.
    """

    def __init__(self, tokenizer: Tokenizer, say: Say) -> None:
        self._tokenizer = tokenizer
        self._say = say
        self._tokens: list[int] = []
        self._said = 0
        self._evaluations: int | None = None

    @property
    def text(self) -> str:
        """The text of all tokens so far."""
        return self._tokenizer.decode(self._tokens)

    def write(self, tokens: list[int], evaluations: int | None = None) -> None:
        """Takes the next tokens, and what they took."""
        self._evaluations = evaluations
        self._tokens.extend(tokens)
        self._say_up_to(self.text.rstrip(_INCOMPLETE))

    def finish(self) -> None:
        """Says what was held back."""
        self._say_up_to(self.text)

    def _say_up_to(self, text: str) -> None:
        if len(text) > self._said:
            self._say(text[self._said :], self._evaluations)
            self._said = len(text)


def _print_now(text: str, evaluations: int | None) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
