"""`equilibria generate`."""

import json as json_format
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import randrange
from typing import Annotated

import torch
from cyclopts import App, Parameter
from cyclopts.validators import Number

from equilibria.data import Tokenizer
from equilibria.inference.loading import LoadedRun, load_run

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


@command.default
def generate(
    run: Path,
    /,
    *,
    draw: Annotated[Draw | None, Parameter(name="*")] = None,
    checkpoint: str = "best",
    json: bool = False,
) -> int:
    """Write text with a run's model, as it comes; the last text is kept in the run's sample.json.

    Args:
        run: the run folder.
        draw: how.
        checkpoint: "best" by validation loss, "last" or "step-N".
        json: print text and settings as one JSON object and nothing else.
    """
    draw = draw or Draw()
    text = write_sample(load_run(run, checkpoint), draw, (lambda _: None) if json else _print_now)
    print(json_format.dumps({**asdict(draw), "text": text}) if json else "")
    return 0


def write_sample(loaded: LoadedRun, draw: Draw, say: Callable[[str], None]) -> str:
    """Continues a prompt and keeps the text in the run folder's sample.json.

    Args:
        loaded: the model and its tokenizer.
        draw: prompt, length and sampling.
        say: called with each piece of text, the prompt first.

    Returns:
        The text without the prompt.
    """
    tokenizer = loaded.tokenizer
    start = tokenizer.encode(draw.prompt)
    stream = TextStream(tokenizer, say)
    stream.write(start)
    loaded.model.generate(
        torch.tensor([start or [tokenizer.eos]]),
        draw.max_new_tokens,
        draw.temperature,
        draw.top_k,
        draw.top_p,
        draw.seed,
        window=loaded.recipe.training.segment_length + loaded.model.memory_length,
        on_token=lambda token_B: stream.write(token_B.tolist()),
    )
    stream.finish()
    text = stream.text[len(tokenizer.decode(start)) :]
    sample = json_format.dumps({**asdict(draw), "text": text})
    loaded.folder.sample.write_text(sample + "\n", encoding="utf-8")
    return text


class TextStream:
    """Decodes tokens as they come; a character whose bytes are not all there yet is held back.

    Args:
        tokenizer: whose tokens these are.
        say: called with each piece of text; the pieces joined are the text of all tokens.
    """

    def __init__(self, tokenizer: Tokenizer, say: Callable[[str], None]) -> None:
        self._tokenizer = tokenizer
        self._say = say
        self._tokens: list[int] = []
        self._said = 0

    @property
    def text(self) -> str:
        """The text of all tokens so far."""
        return self._tokenizer.decode(self._tokens)

    def write(self, tokens: list[int]) -> None:
        """Takes the next tokens."""
        self._tokens.extend(tokens)
        self._say_up_to(self.text.rstrip(_INCOMPLETE))

    def finish(self) -> None:
        """Says what was held back."""
        self._say_up_to(self.text)

    def _say_up_to(self, text: str) -> None:
        if len(text) > self._said:
            self._say(text[self._said :])
            self._said = len(text)


def _print_now(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
