"""Text on a terminal, coloured by how many evaluations each piece of it took."""

from rich.console import Console
from rich.style import Style
from rich.text import Text

# From light to dark in hues that differ for all eyes; terminals of few colours take their nearest.
_SHADES = (
    ("black", "#fde725"),
    ("black", "#a0da39"),
    ("black", "#4ac16d"),
    ("black", "#2ab07f"),
    ("white", "#277f8e"),
    ("white", "#365c8d"),
    ("white", "#46327e"),
    ("white", "#440154"),
)


def shade(evaluations: int) -> Style:
    """Darker for more: a shade for each number up to 6, the last three for 7, 8 to 11, and 12 or more."""
    level = min(max(evaluations - 2, 0), 5)
    if evaluations >= 8:
        level = 6 if evaluations < 12 else 7
    foreground, background = _SHADES[level]
    return Style(color=foreground, bgcolor=background)


def print_piece(console: Console, text: str, evaluations: int | None) -> None:
    """Prints a piece of text without ending the line; plain where its evaluations are unknown."""
    style = shade(evaluations) if evaluations is not None else Style()
    console.print(Text(text, style=style), end="", soft_wrap=True)


def legend(counts: list[int]) -> Text:
    """What the shades stand for, with the share of each number of evaluations."""
    line = Text("evaluations:")
    for number in sorted(set(counts)):
        share = counts.count(number) / len(counts)
        percent = f"{share:.0%}" if share >= 0.005 else "<1%"
        line.append(" ").append(f" {number} ", shade(number)).append(f" {percent}")
    return line
