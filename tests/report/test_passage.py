"""The coloured text shows every character, escaped, in the shade of its evaluations."""

from html import unescape
from re import findall, sub

from hypothesis import given
from hypothesis import strategies as st

from equilibria.inference.shades import LEVELS
from equilibria.report.measurement import TokenFigures
from equilibria.report.page import coloured, legend


def piece(text: str, evaluations: int, converged: bool = True) -> TokenFigures:
    return TokenFigures(text, evaluations, 1e-3, 0.5, converged)


@given(st.lists(st.tuples(st.text(), st.integers(1, 40)), min_size=1))
def test_the_text_is_whole_and_harmless(parts: list[tuple[str, int]]) -> None:
    html = coloured([piece(text, evaluations) for text, evaluations in parts])
    shown = sub(r"<[^>]*>", "", html.replace("<i>↵</i>", ""))
    assert unescape(shown) == "".join(text for text, _ in parts)
    assert set(findall(r"<(\w+)", html)) <= {"p", "span", "i"}


def test_markup_in_a_text_stays_text() -> None:
    html = coloured([piece('<script>"&', 1)])
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert 'title="&#x27;&lt;script&gt;&quot;&amp;&#x27;: 1 evaluations' in html


def test_more_evaluations_are_never_lighter() -> None:
    passage = [piece("a", evaluations) for evaluations in (3, 3, 5, 9, 16)]
    levels = [int(level) for level in findall(r'class="e(\d)"', coloured(passage))]
    assert levels == sorted(levels)
    assert levels[0] == 0
    assert levels[-1] == LEVELS - 1


def test_the_legend_counts_every_token_once() -> None:
    passage = [piece("a", evaluations) for evaluations in range(1, 101)]
    shares = [int(share) for share in findall(r"(\d+)%", legend(passage))]
    assert sum(shares) == 100
    assert len(shares) == LEVELS


def test_a_token_that_did_not_converge_is_marked() -> None:
    assert "not converged" not in legend([piece("a", 3)])
    passage = [piece("a", 3), piece("b", 9, converged=False)]
    assert "not converged" in legend(passage)
    assert findall(r'class="(e\d open)"', coloured(passage)) == [f"e{LEVELS - 1} open"]
