"""Text as its tokens come: whole characters only, and nothing of a string at which the text stops.

Decoding goes on from the last token whose text was whole, so that a long text costs no more per token than a short one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from equilibria.data.tokenizers import Tokenizer

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""What bytes that are no character (yet) decode to."""

_LONGEST = 4  # bytes, and so tokens, of a character at most


def check_stops(stop: Sequence[str]) -> None:
    """Raises ValueError where a stop string is empty: it would end every text before it begins."""
    if "" in stop:
        raise ValueError("a stop string must have at least 1 character")


class TextStream:
    """The text of tokens that are written one after another.

    A text stops where the first of the stop strings is complete, wherever tokens begin and end, and is what stands
    before that string (before the longest, where several end there). What may become one is held back until it is
    known; so is a character whose bytes are not all there.

    Args:
        tokenizer: whose tokens these are.
        prompt: tokens before the text, not part of it; a character that they begin and the text completes is.
        stop: strings at which the text stops.

    Attributes:
        text: what has been said so far.
        offset: where in the text, held back or not, the last token's own characters begin.
        stopped: the string at which the text has stopped, or None.

    Raises:
        ValueError: a stop string is empty.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = (), stop: Sequence[str] = ()) -> None:
        check_stops(stop)
        self._tokenizer = tokenizer
        self._stops = [_Stop(one) for one in stop]
        self._context: list[int] = []  # what words are joined to
        self._open: list[int] = []
        self._taken = 0
        for token in prompt[-4 * _LONGEST :]:
            self._decode(int(token))
        if not self.begun:
            self._open, self._taken = [], 0
        self._held = ""
        self.text = ""
        self.offset = 0
        self.stopped: str | None = None

    @property
    def begun(self) -> bool:
        """Whether the last tokens may be the beginning of a character."""
        return 0 < len(self._open) < _LONGEST

    @property
    def whole(self) -> bool:
        """Whether the tokens so far end where a character ends."""
        return not self._open

    def write(self, token: int) -> str:
        """Takes the next token; returns the text that is certain now and was not before."""
        length, before = len(self.text) + len(self._held), self._undecided()
        new = self._decode(token)
        # Bytes that turn out to be no character stand before the token; those that it completes are its own.
        after = new or self._undecided()
        broken = len(after) - len(after.lstrip(INCOMPLETE))
        self.offset = length + max(0, min(len(before), broken, len(after) - 1))
        return self._say(new, last=False)

    def finish(self) -> str:
        """Returns what was held back, unless the text has stopped."""
        return self._say(self._undecided(), last=True)

    def _undecided(self) -> str:
        """What the last tokens decode to, where they may be the beginning of a character."""
        return self._decoded()[self._taken :] if self._open else ""

    def _decode(self, token: int) -> str:
        """The whole characters that one more token completes."""
        self._open.append(token)
        decoded = self._decoded()
        whole = decoded.rstrip(INCOMPLETE)
        new = whole[self._taken :]
        self._taken = max(self._taken, len(whole))
        if len(whole) == len(decoded):
            self._context, self._open, self._taken = [token], [], 0
        return new

    def _decoded(self) -> str:
        before = self._tokenizer.decode(self._context)
        return self._tokenizer.decode([*self._context, *self._open])[len(before) :]

    def _say(self, new: str, last: bool) -> str:
        if self.stopped is not None:
            return ""
        unsaid = self._held + new
        end = len(self._held)
        for character in new:
            end += 1
            complete = [stop.text for stop in self._stops if stop.read(character)]
            if complete:
                self.stopped = max(complete, key=len)
                unsaid, kept = unsaid[: end - len(self.stopped)], 0
                break
        else:
            kept = 0 if last else max((stop.begun for stop in self._stops), default=0)
        unsaid, self._held = unsaid[: len(unsaid) - kept], unsaid[len(unsaid) - kept :]
        self.text += unsaid
        return unsaid


class _Stop:
    """A string that is looked for as characters come (Knuth, Morris and Pratt 1977).

    Attributes:
        begun: how many characters at the end of those that came are the beginning of it.
    """

    def __init__(self, text: str) -> None:
        self.text, self.begun = text, 0
        self._shorter = _shorter(text)

    def read(self, character: str) -> bool:
        """Whether one more character completes it."""
        self.begun = _longer(self.text, self._shorter, self.begun, character)
        return self.begun == len(self.text)


def _longer(text: str, shorter: Sequence[int], begun: int, character: str) -> int:
    """How much of a string has begun after one more character."""
    while begun and (begun == len(text) or text[begun] != character):
        begun = shorter[begun - 1]
    return begun + (text[begun] == character)


@lru_cache(1024)
def _shorter(text: str) -> tuple[int, ...]:
    """Of each beginning of a string, how long the next shorter one is that it ends with; made once for many texts."""
    lengths = [0]
    for character in text[1:]:
        lengths.append(_longer(text, lengths, lengths[-1], character))
    return tuple(lengths)
