"""Text on a terminal, coloured by how many evaluations each piece of it took."""

from rich.console import Console
from rich.style import Style
from rich.text import Text

from equilibria.inference.shades import Shades

# From light to dark in hues that differ for all eyes; terminals of few colours take their nearest.
_STYLES = tuple(
    Style(color=foreground, bgcolor=background)
    for foreground, background in (
        ("black", "#fde725"),
        ("black", "#a0da39"),
        ("black", "#4ac16d"),
        ("black", "#2ab07f"),
        ("white", "#277f8e"),
        ("white", "#365c8d"),
        ("white", "#46327e"),
        ("white", "#440154"),
    )
)

_FIRST = 24  # tokens that say what is little and what is much


class ColouredText:
    """Prints pieces of text as they come, each in the shade of its evaluations; plain where these are unknown.

    The first pieces wait until enough are known to tell the shades apart; `end` prints what still waits, and a legend.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shades: Shades | None = None
        self._waiting: list[tuple[str, int | None]] = []
        self.counts: list[int] = []

    def say(self, text: str, evaluations: int | None) -> None:
        """Takes the next piece."""
        self._waiting.append((text, evaluations))
        if evaluations is not None:
            self.counts.append(evaluations)
        if self._shades is None and len(self.counts) >= _FIRST:
            self._shades = Shades.of(self.counts)
        if self._shades is not None:
            self._print(self._shades)

    def end(self) -> None:
        """Prints the rest, and what the shades stand for, with the share of each."""
        shades = self._shades or Shades.of(self.counts or [0])
        self._print(shades)
        self._console.print()
        if self.counts:
            self._console.print(_legend(shades, self.counts))

    def _print(self, shades: Shades) -> None:
        for text, evaluations in self._waiting:
            style = Style() if evaluations is None else _STYLES[shades.level(evaluations)]
            self._console.print(Text(text, style=style), end="", soft_wrap=True)
        self._waiting.clear()


def _legend(shades: Shades, counts: list[int]) -> Text:
    line = Text("evaluations:")
    for shade in shades.legend(counts):
        line.append(" ").append(f" {shade.text} ", _STYLES[shade.level]).append(f" {shade.percent}")
    return line
