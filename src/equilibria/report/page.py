"""The page: sections of HTML put together, with all text escaped."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from html import escape
from importlib.resources import files

from equilibria.configuration import table_of
from equilibria.depths import Equilibrium
from equilibria.inference.shades import Shades
from equilibria.models import LanguageModelRecipe, ModelRecipe
from equilibria.report.curves import MOST_POINTS, convergence_plot, loss_plots, solve_plots
from equilibria.report.figures import Plot, draw
from equilibria.report.gather import Figures, RunRecord, number
from equilibria.report.headline import Card
from equilibria.report.measurement import Solves, TokenFigures

# The page may load nothing, whatever its texts contain.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(run: RunRecord, cards: Sequence[Card], solves: Solves | None) -> str:
    """The whole document; `solves` is what `measure_solves` found. A UserError if matplotlib cannot be loaded."""
    name = escape(run.folder.path.resolve().name)
    recipe = run.config and f"<details open><summary>Recipe</summary>\n<pre>{escape(run.config)}</pre></details>"
    sections = [
        _header(name, run),
        _cards(cards),
        _missing(run.missing),
        _plots("Loss", list(loss_plots(run)), _loss_note(run)),
        *([] if run.explicit else _solve_sections(run, solves)),
        _sample(run),
        recipe,
        _events(run),
    ]
    style = files("equilibria.report").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}</title>\n<style>{style}</style>\n</head>\n"
        f"<body>\n<main>\n{chr(10).join(filter(None, sections))}\n</main>\n</body>\n</html>\n"
    )


def _header(name: str, run: RunRecord) -> str:
    steps = max((number(line, "step") or 0.0 for line in run.metrics), default=0.0)
    parts = [f"{steps:,.0f} steps" if run.recipe is None else f"{steps:,.0f} of {run.recipe.training.steps:,} steps"]
    if run.recipe is not None:
        parts.append(_kind_of_model(run.recipe.model))
    parts.append(f"written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC")
    return f'<h1>{name}</h1>\n<p class="quiet">{escape(" · ".join(parts))}</p>'


def _kind_of_model(model: ModelRecipe) -> str:
    table = table_of(model)
    kind = str(table["kind"]).rpartition(":")[2]
    if not isinstance(model, LanguageModelRecipe):
        return kind.replace("_", " ")
    depth = table["depth"]
    how = f"depth {depth['kind']}"
    if isinstance(model.depth, Equilibrium):
        how = f"solved by {depth['eval_solver']['method']}"
    elif "applications" in depth or "layers" in depth:
        number = depth.get("applications", depth.get("layers"))
        how = f"{number} {'applications' if 'applications' in depth else 'layers'}"
    return f"{table['cell']['kind']} cell, {how}".replace("_", " ")


def _cards(cards: Sequence[Card]) -> str:
    items = (
        f'<dl class="card"><dt>{escape(card.name)}</dt><dd class="value">{escape(card.value)}</dd>'
        + "".join(f'<dd class="detail">{escape(detail)}</dd>' for detail in card.details)
        + "</dl>"
        for card in cards
    )
    return f'<div class="cards">{"".join(items)}</div>'


def _missing(sentences: Sequence[str]) -> str:
    if not sentences:
        return ""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<div class="missing"><p>Missing from this report:</p><ul>{items}</ul></div>'


def _plots(heading: str, plots: Sequence[Plot], note: str) -> str:
    drawn = [f"<figure>{draw(plot)}</figure>" for plot in plots if not plot.empty]
    if not drawn:
        return ""
    return f'<h2>{heading}</h2>\n<p class="quiet">{note}</p>\n<div class="plots">{"".join(drawn)}</div>'


def _loss_note(run: RunRecord) -> str:
    of = "a target" if run.made else "the next token"
    note = f"Mean negative log-likelihood of {of}. Training time excludes evaluations and saving."
    count = len(run.lines("train"))
    if count > MOST_POINTS:
        note += f" Each point of a training curve is a mean of up to {-(-count // MOST_POINTS):,} lines."
    return note


def _solve_sections(run: RunRecord, solves: Solves | None) -> Iterator[str]:
    yield _plots(
        "The solves over training",
        list(solve_plots(run)),
        "An evaluation is one application of the cell. The residual is ‖f(z) - z‖ / ‖f(z)‖ per token, "
        "of the state that the prediction is made from.",
    )
    if solves is None:
        return
    pieces, convergence = solves
    if convergence is not None:
        yield _plots(
            "One validation solve",
            [convergence_plot(convergence)],
            f"How the residual falls, over {convergence.tokens:,} tokens of the validation data. In use, a token stops "
            "at the tolerance, the dotted line. Here the solver of evaluation goes on beyond it, without a draft or a "
            "fallback.",
        )
    if pieces:
        yield (
            "<h2>Evaluations per token</h2>\n"
            '<p class="quiet">The beginning of the validation text: each token in the shade of the evaluations after '
            "which its state had converged. Tokens that share a character are one piece. Point at a piece for its "
            "figures.</p>\n"
            f"{legend(pieces)}\n{coloured(pieces)}"
        )


def _sample(run: RunRecord) -> str:
    if run.sample is None:
        return ""
    prompt, text = run.sample.get("prompt") or "", run.sample.get("text") or ""
    note = escape(_settings(run.sample))
    shown = f'<span class="prompt">{escape(str(prompt))}</span>{escape(str(text))}'
    return f'<h2>Generated text</h2>\n<p class="quiet">{note}</p>\n<pre class="text">{shown}</pre>'


_DRAWN = {
    "temperature": "temperature {}",
    "top_k": "the {} most likely tokens",
    "top_p": "nucleus of {}",
    "min_p": "at least {} of the most likely one's probability",
    "repetition_penalty": "repetition penalty {}",
    "tolerance": "tolerance {}",
    "max_evaluations": "at most {} evaluations",
    "max_new_tokens": "at most {} tokens",
    "seed": "seed {}",
}
"""How a text was drawn, in words."""


def _settings(sample: Figures) -> str:
    usual = {"repetition_penalty": 1.0}
    known = {name: sample.get(name) for name in _DRAWN}
    return ", ".join(
        _DRAWN[name].format(value) for name, value in known.items() if value is not None and value != usual.get(name)
    )


def _events(run: RunRecord) -> str:
    lines = run.lines("event")
    if not lines:
        return "<h2>Events</h2>\n<p>The run was neither interrupted nor resumed.</p>" if run.metrics else ""
    return f'<h2>Events</h2>\n<ul class="events">{"".join(map(_event, lines))}</ul>'


def _event(line: Figures) -> str:
    time = number(line, "time")
    when = "" if time is None else f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M} UTC, "
    return f"<li>{when}step {number(line, 'step') or 0:,.0f}: {escape(str(line.get('message', '')))}</li>"


def legend(passage: Sequence[TokenFigures]) -> str:
    """What the shades stand for, with their shares of the tokens."""
    counts = [piece.evaluations for piece in passage]
    entries = [
        f'<li><span class="swatch e{shade.level}"></span>{shade.text} <small>{escape(shade.percent)}</small></li>'
        for shade in Shades.of(counts).legend(counts)
    ]
    if not all(piece.converged for piece in passage):
        entries.append('<li><span class="swatch open"></span>not converged</li>')
    return f'<ul class="legend"><li>evaluations:</li>{"".join(entries)}</ul>'


def coloured(passage: Sequence[TokenFigures]) -> str:
    """The text, each piece in the shade of its evaluations and with its figures as its title."""
    shades = Shades.of(piece.evaluations for piece in passage)
    spans = (_span(piece, shades.level(piece.evaluations)) for piece in passage)
    return f'<p class="passage">{"".join(spans)}</p>'


def _span(piece: TokenFigures, level: int) -> str:
    surprise = "" if piece.nll is None else f", {piece.nll:.2f} nats unexpected"
    title = f"{piece.text!r}: {piece.evaluations} evaluations, residual {piece.residual:.2g}{surprise}"
    classes = f"e{level}" if piece.converged else f"e{level} open"
    text = escape(piece.text).replace("\n", "<i>↵</i>\n")
    return f'<span class="{classes}" title="{escape(title)}">{text}</span>'
