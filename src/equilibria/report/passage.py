"""A text coloured by how much computation each of its tokens took."""

from collections import Counter
from collections.abc import Sequence
from html import escape

from equilibria.report.measurement import Piece

LEVELS = 8
"""Shades that the page's style sheet has: `.e0` (least) to `.e7` (most)."""


def legend(passage: Sequence[Piece]) -> str:
    """A shade per number of evaluations (or per range of them), with its share of the tokens."""
    counts = Counter(piece.evaluations for piece in passage)
    least, most = min(counts), max(counts)
    entries = []
    for level in range(LEVELS):
        inside = [number for number in counts if _level(number, least, most) == level]
        if not inside:
            continue
        share = sum(counts[number] for number in inside) / len(passage)
        percent = f"{share:.0%}" if share >= 0.005 else "<1%"
        span = f"{min(inside)}" if len(inside) == 1 else f"{min(inside)} to {max(inside)}"
        entries.append(f'<li><span class="swatch e{level}"></span>{span} <small>{escape(percent)}</small></li>')
    if not all(piece.converged for piece in passage):
        entries.append('<li><span class="swatch open"></span>not converged</li>')
    return f'<ul class="legend"><li>evaluations:</li>{"".join(entries)}</ul>'


def coloured(passage: Sequence[Piece]) -> str:
    """The text, each piece in the shade of its evaluations and with its figures as its title."""
    least = min(piece.evaluations for piece in passage)
    most = max(piece.evaluations for piece in passage)
    spans = (_span(piece, _level(piece.evaluations, least, most)) for piece in passage)
    return f'<p class="passage">{"".join(spans)}</p>'


def _span(piece: Piece, level: int) -> str:
    surprise = "" if piece.nll is None else f", {piece.nll:.2f} nats unexpected"
    title = f"{piece.text!r}: {piece.evaluations} evaluations, residual {piece.residual:.2g}{surprise}"
    classes = f"e{level}" if piece.converged else f"e{level} open"
    text = escape(piece.text).replace("\n", "<i>↵</i>\n")
    return f'<span class="{classes}" title="{escape(title)}">{text}</span>'


def _level(evaluations: int, least: int, most: int) -> int:
    """Each number its own shade where there are enough, else equal ranges; the most is always the darkest."""
    if most == least:
        return 0
    return round((evaluations - least) / (most - least) * (LEVELS - 1))
