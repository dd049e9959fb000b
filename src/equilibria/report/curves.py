"""Lines of metrics as plots, thinned so that the page of a long run stays small."""

from collections.abc import Iterator, Sequence

from equilibria.report.figures import Curve, Dash, Plot, Role
from equilibria.report.gather import Figures, RunRecord, number, reference_losses
from equilibria.report.measurement import Convergence

MOST_POINTS = 400

_STEPS = "optimizer steps"


def thinned(values: Sequence[float], most: int = MOST_POINTS) -> list[float]:
    """At most `most` values: the means of stretches of equal length (the last may be shorter)."""
    size = max(1, -(-len(values) // most))
    runs = (values[start : start + size] for start in range(0, len(values), size))
    return [sum(run) / len(run) for run in runs]


def loss_plots(run: RunRecord) -> Iterator[Plot]:
    """Training and validation loss against steps and against time."""
    unit, seconds = _time_unit(run.metrics)
    for name, label, key, scale in (
        ("steps", _STEPS, "step", 1.0),
        ("time", f"training time ({unit})", "seconds", seconds),
    ):
        yield Plot(
            name=f"loss-{name}",
            title=f"Loss against {name}",
            x_label=label,
            y_label=f"loss (nats per {'position' if run.made else 'token'})",
            curves=(
                _curve(run.lines("train"), "training", key, "loss", scale),
                _curve(run.lines("valid"), "validation", key, "loss", scale),
            ),
            references=list(reference_losses(run.on_validation).items()),
            logarithmic=run.made,
        )


def solve_plots(run: RunRecord) -> Iterator[Plot]:
    """Evaluations and residuals of training and validation solves against steps."""
    train, valid = run.lines("train"), run.lines("valid")
    yield Plot(
        name="evaluations-steps",
        title="Evaluations over training",
        x_label=_STEPS,
        y_label="evaluations per solve",
        curves=(
            _curve(train, "training, gradient steps included", "step", "evaluations"),
            _curve(valid, "validation", "step", "evaluations"),
        ),
        whole=True,
    )
    yield Plot(
        name="residual-steps",
        title="Residual over training",
        x_label=_STEPS,
        y_label="relative residual",
        curves=(
            _curve(train, "training, mean", "step", "residual"),
            _curve(valid, "validation, mean", "step", "residual"),
            _curve(valid, "95th percentile", "step", "residual_p95", dash="--"),
            _curve(valid, "worst token", "step", "residual_worst", dash=":"),
        ),
        logarithmic=True,
    )


def convergence_plot(convergence: Convergence) -> Plot:
    """Residual against evaluations of one solve."""
    counts = [float(count + 1) for count in range(len(convergence.mean))]
    return Plot(
        name="convergence",
        title="Residual against evaluations",
        x_label="evaluations of the cell",
        y_label="relative residual",
        curves=(
            Curve("mean over tokens", counts, convergence.mean, "valid", markers=True),
            Curve("95th percentile", counts, convergence.p95, "valid", "--"),
            Curve("worst token", counts, convergence.worst, "valid", ":"),
        ),
        references=[("tolerance", convergence.tolerance)],
        logarithmic=True,
    )


def points(lines: Sequence[Figures], x: str, y: str) -> tuple[list[float], list[float]]:
    """Two figures of every line that has both, as finite numbers, thinned alike."""
    pairs = [(number(line, x), number(line, y)) for line in lines]
    known = [(at, value) for at, value in pairs if at is not None and value is not None]
    return thinned([at for at, _ in known]), thinned([value for _, value in known])


def _curve(lines: Sequence[Figures], label: str, x: str, y: str, scale: float = 1.0, dash: Dash = "-") -> Curve:
    at, values = points(lines, x, y)
    role: Role = "train" if label.startswith("training") else "valid"
    return Curve(label, [value / scale for value in at], values, role, dash, markers=role == "valid" and dash == "-")


def _time_unit(lines: Sequence[Figures]) -> tuple[str, float]:
    """The largest unit in which the run lasted at least two, and its seconds."""
    longest = max((number(line, "seconds") or 0.0 for line in lines), default=0.0)
    for unit, seconds in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if longest >= 2 * seconds:
            return unit, seconds
    return "seconds", 1.0
