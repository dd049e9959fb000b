"""The final figures of a run, as the cards at the top of its page."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from equilibria.models import TokenModel
from equilibria.report.gather import Figures, RunRecord, baseline_perplexities, nested, number, reference_losses

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Card:
    """One figure, with what makes sense of it beside it."""

    name: str
    value: str
    details: Sequence[str] = ()


def cards(run: RunRecord, model: TokenModel | None) -> list[Card]:
    """The headline: of evaluation.json where it is there, else of the best validation during training.

    Args:
        run: what the run folder holds.
        model: of the best checkpoint, for its size; None where it could not be loaded.
    """
    found = [_loss(run) if run.made else _perplexity(run)]
    if (split := _split(run)) != "valid":
        found.append(Card(f"{split.capitalize()} perplexity", _form(number(run.evaluation, "perplexity"), ",.2f")))
    if not run.explicit:
        found += _solve_cards(run)
    return [*found, _speed(run), _size(model)]


def _split(run: RunRecord) -> str:
    """Which part of the text evaluation.json is about."""
    return str(run.evaluation.get("split", "valid")) if run.evaluation is not None else "valid"


def _perplexity(run: RunRecord) -> Card:
    evaluated = run.evaluation if _split(run) == "valid" else None
    value = number(evaluated, "perplexity") or number(run.best_validation(), "perplexity")
    details = [f"{name} model {_form(other, ',.2f')}" for name, other in baseline_perplexities(run).items()]
    if (per_word := number(evaluated, "word_perplexity")) is not None:
        details.append(f"per word {_form(per_word, ',.2f')}")
    if (bits := number(evaluated, "bits_per_byte")) is not None:
        details.append(f"{bits:.3f} bits per byte")
    if evaluated is None:
        details.append("best evaluation during training")
    return Card("Validation perplexity", _form(value, ",.2f"), details)


def _loss(run: RunRecord) -> Card:
    """Where losses are compared with chance, and a perplexity close to 1 says little."""
    source = run.evaluation or run.best_validation()
    details = ["nats per position"]
    details += [f"{name} {value:.3g}" for name, value in reference_losses(run).items()]
    if (accuracy := number(source, "accuracy")) is not None:
        details.append(f"{accuracy:.2%} of the answers right")
    if run.evaluation is None:
        details.append("best evaluation during training")
    return Card("Validation loss", _form(number(source, "loss"), ".3g"), details)


def _solve_cards(run: RunRecord) -> list[Card]:
    """Residual and evaluations; the two sources of figures give them different names."""
    line = run.best_validation()
    residual = nested(run.evaluation, "residual")
    if residual is None and line is not None:
        residual = {
            "mean": line.get("residual"),
            "p95": line.get("residual_p95"),
            "worst": line.get("residual_worst"),
        }
    per_solve = number(run.evaluation, "evaluations_per_solve")
    if per_solve is None:
        per_solve = number(line, "evaluations")
    unconverged = number(run.evaluation if run.evaluation is not None else line, "unconverged")
    details = [] if unconverged is None else [f"{unconverged:.1%} of solves did not converge"]
    per_token = nested(run.evaluation, "evaluations")
    return [
        Card(
            "Residual",
            _form(number(residual, "mean"), ".2g"),
            ["mean over tokens", *_spread(residual, ".2g"), *_tolerance(run)],
        ),
        Card(
            "Evaluations per solve",
            _form(per_solve, ".1f"),
            [*_per_token(per_token), *details],
        ),
    ]


def _per_token(spread: Figures | None) -> list[str]:
    mean = number(spread, "mean")
    return [] if mean is None else [f"per token {mean:.1f}, {', '.join(_spread(spread, '.0f'))}"]


def _tolerance(run: RunRecord) -> list[str]:
    return [] if run.recipe is None else [f"tolerance {run.recipe.model.depth.eval_solver.tol:.2g}"]


def _spread(spread: Figures | None, form: str) -> list[str]:
    named = (("95th percentile", number(spread, "p95")), ("worst", number(spread, "worst")))
    return [f"{name} {value:{form}}" for name, value in named if value is not None]


def _speed(run: RunRecord) -> Card:
    train = run.lines("train")
    speeds = [speed for line in train if (speed := number(line, "tokens_per_second")) is not None]
    details = ["tokens per second, median"] if speeds else []
    if train and (seconds := number(train[-1], "seconds")) is not None:
        details.append(f"{_duration(seconds)} of training")
    return Card("Training speed", f"{median(speeds):,.0f}" if speeds else UNKNOWN, details)


def _size(model: TokenModel | None) -> Card:
    if model is None:
        return Card("Parameters", UNKNOWN)
    total = sum(parameter.numel() for parameter in model.parameters())
    embedding = sum(parameter.numel() for parameter in model.embedding.parameters())
    return Card("Parameters", _count(total), [f"{_count(embedding)} in the embedding"])


def _count(number_of: int) -> str:
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number_of >= size:
            return f"{number_of / size:.3g} {unit}"
    return str(number_of)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _form(value: float | None, form: str) -> str:
    return UNKNOWN if value is None else format(value, form)
