"""Text as its tokens come: whole characters only, and nothing of a string at which the text stops.

Decoding goes on from the last token whose text was whole, so that a long text costs no more per token than a short one.
"""

from __future__ import annotations

from collections.abc import Sequence

from equilibria.data.tokenizers import Tokenizer

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""What bytes that are no character (yet) decode to."""


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
        prompt: tokens before the text, not part of it.
        stop: strings at which the text stops.

    Attributes:
        text: what has been said so far.
        stopped: the string at which the text has stopped, or None.

    Raises:
        ValueError: a stop string is empty.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = (), stop: Sequence[str] = ()) -> None:
        check_stops(stop)
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._context = [int(token) for token in prompt[-1:]]  # what words are joined to
        if tokenizer.decode(self._context).endswith(INCOMPLETE):
            self._context = []
        self._open: list[int] = []
        self._taken = 0
        self._held = ""
        self.text = ""
        self.stopped: str | None = None

    @property
    def length(self) -> int:
        """Characters of all tokens so far that are whole, held back or not."""
        return len(self.text) + len(self._held)

    @property
    def whole(self) -> bool:
        """Whether the tokens so far end where a character ends."""
        return not self._open

    def write(self, token: int) -> str:
        """Takes the next token; returns the text that is certain now and was not before."""
        self._open.append(token)
        decoded = self._decoded()
        whole = decoded.rstrip(INCOMPLETE)
        new = whole[self._taken :]
        self._taken = max(self._taken, len(whole))
        if len(whole) == len(decoded):
            self._context, self._open, self._taken = [token], [], 0
        return self._say(new, last=False)

    def finish(self) -> str:
        """Returns what was held back, unless the text has stopped."""
        return self._say(self._decoded()[self._taken :], last=True)

    def _decoded(self) -> str:
        before = self._tokenizer.decode(self._context)
        return self._tokenizer.decode([*self._context, *self._open])[len(before) :]

    def _say(self, new: str, last: bool) -> str:
        if self.stopped is not None:
            return ""
        unsaid = self._held + new
        found = [(unsaid.find(stop), stop) for stop in self._stop if stop in unsaid]
        if found:
            start, self.stopped = min(found, key=lambda place: (place[0] + len(place[1]), place[0]))
            unsaid, self._held = unsaid[:start], ""
        else:
            kept = 0 if last else self._beginning(unsaid)
            unsaid, self._held = unsaid[: len(unsaid) - kept], unsaid[len(unsaid) - kept :]
        self.text += unsaid
        return unsaid

    def _beginning(self, text: str) -> int:
        """How many characters at the end may be the beginning of a stop string."""
        lengths = (size for stop in self._stop for size in range(1, len(stop)) if text.endswith(stop[:size]))
        return max(lengths, default=0)
