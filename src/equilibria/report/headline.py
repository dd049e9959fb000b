"""The final figures of a run, as the cards at the top of its page."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from equilibria.depths import Equilibrium
from equilibria.measuring.size import shortened, size_of
from equilibria.models import TokenModel
from equilibria.report import gather
from equilibria.report.gather import Figures, RunRecord, nested, number

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Card:
    """One figure, with details that explain it."""

    name: str
    value: str
    details: Sequence[str] = ()


def cards(run: RunRecord, model: TokenModel | None) -> list[Card]:
    """The headline: from evaluation.json if that is of the best checkpoint at the recipe's effort, else from the best
    validation during training. Any other evaluation has its own card, which says what it is of.

    The model is that of the best checkpoint, for its size; None if it could not be loaded.
    """
    found = [_validation(run)]
    if run.evaluation is not None and run.final is None:
        found.append(_other_evaluation(run, run.evaluation))
    if not run.explicit:
        found += _solve_cards(run)
    return [*found, _speed(run), _size(model)]


def _validation(run: RunRecord) -> Card:
    figures = run.final or run.best_validation()
    details = _measure(run, figures, run.on_validation)
    if run.final is not None:
        details += _lengths(run, run.final)
    elif run.best_step is not None:
        details.append("evaluation of the best checkpoint during training")
    else:
        details.append("best evaluation during training")
    return Card(f"Validation {_quantity(run)}", _value(run, figures), details)


def _other_evaluation(run: RunRecord, evaluation: Figures) -> Card:
    """An evaluation of another text, checkpoint or effort, which the headline must not use."""
    details = [*run.departures(), *_lengths(run, evaluation)]
    if run.on_validation is None:
        name, yardsticks = f"{run.evaluated_split.capitalize()} {_quantity(run)}", evaluation
    else:
        name, yardsticks = "Last evaluation", None  # they are on the first card
        details.insert(0, f"validation {_quantity(run)}")
    details += _measure(run, evaluation, yardsticks)
    for label, value, form in (
        ("residual", number(nested(evaluation, "residual"), "mean"), ".2g"),
        ("evaluations per solve", number(evaluation, "evaluations_per_solve"), ".1f"),
    ):
        if value is not None:
            details.append(f"{label} {value:{form}}")
    return Card(name, _value(run, evaluation), details)


def _quantity(run: RunRecord) -> str:
    """What is compared; the perplexity of a task is too close to 1 to say much."""
    return "loss" if run.made else "perplexity"


def _value(run: RunRecord, figures: Figures | None) -> str:
    return _form(number(figures, _quantity(run)), ".3g" if run.made else ",.2f")


def _measure(run: RunRecord, figures: Figures | None, yardsticks: Figures | None) -> list[str]:
    """Context for a loss or perplexity: those of other models on the same text, and other measures."""
    if run.made:
        references = gather.reference_losses(yardsticks)
        details = ["nats per position", *(f"{name} {value:.3g}" for name, value in references.items())]
    else:
        references = gather.baseline_perplexities(yardsticks)
        details = [f"{name} model {value:,.2f}" for name, value in references.items()]
    if (per_word := number(figures, "word_perplexity")) is not None:
        details.append(f"per word {per_word:,.2f}")
    if (bits := number(figures, "bits_per_byte")) is not None:
        details.append(f"{bits:.3f} bits per byte")
    for name, what in (
        ("accuracy", "of the answers right"),
        ("last_accuracy", "right at the last position"),
        ("sequence_accuracy", "of the sequences right at every position"),
    ):
        if run.made and (share := number(figures, name)) is not None:
            details.append(f"{share:.2%} {what}")
    return details


def _lengths(run: RunRecord, evaluation: Figures) -> list[str]:
    """Lengths that differ from those of training."""
    if run.recipe is None:
        return []
    trained = {"segment_length": run.recipe.training.segment_length, "memory_length": run.recipe.model.memory_length}
    trained["chunk_length"] = 0
    found = ((name, number(evaluation, name), length) for name, length in trained.items())
    return [f"{name.replace('_', ' ')} {value:,.0f}" for name, value, own in found if value not in (None, own)]


def _solve_cards(run: RunRecord) -> list[Card]:
    """Residual and evaluations, which evaluation.json and metrics name differently."""
    evaluation, line = run.final, run.best_validation()
    residual = nested(evaluation, "residual")
    if residual is None and line is not None:
        names = {"mean": "residual", "p95": "residual_p95", "worst": "residual_worst"}
        residual = {name: line.get(key) for name, key in names.items()}
    per_solve = number(evaluation, "evaluations_per_solve")
    if per_solve is None:
        per_solve = number(line, "evaluations")
    unconverged = number(evaluation if evaluation is not None else line, "unconverged")
    details = [] if unconverged is None else [f"{unconverged:.1%} of tokens did not converge"]
    per_token = nested(evaluation, "evaluations")
    if (mean := number(per_token, "mean")) is not None:
        details.insert(0, f"per token {mean:.1f}, {', '.join(_spread(per_token, '.3g'))}")
    spread = ["mean over tokens", *_spread(residual, ".2g")]
    depth = None if run.recipe is None else gather.depth_of(run.recipe)
    if isinstance(depth, Equilibrium):
        spread.append(f"tolerance {depth.eval_solver.tol:.2g}")
    found = [
        Card("Residual", _form(number(residual, "mean"), ".2g"), spread),
        Card("Evaluations per solve", _form(per_solve, ".1f"), details),
    ]
    radius = nested(evaluation, "spectral_radius")
    if (mean := number(radius, "mean")) is not None:
        found.append(Card("Spectral radius", f"{mean:.2f}", ["mean over some tokens", *_spread(radius, ".2f")]))
    return found


def _spread(spread: Figures | None, form: str) -> list[str]:
    names = {"median": "median", "p90": "90th percentile", "p95": "95th percentile", "worst": "worst"}
    named = ((name, number(spread, key)) for key, name in names.items())
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
    size = size_of(model)
    return Card("Parameters", shortened(size.total), [f"{shortened(size.total - size.inner)} in the embedding"])


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _form(value: float | None, form: str) -> str:
    return UNKNOWN if value is None else format(value, form)
