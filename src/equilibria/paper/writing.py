"""A reproduced table as text and as JSON. What was not run says so."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from equilibria.measuring.size import Size
from equilibria.measuring.spread import Quartiles
from equilibria.paper.contests import MemoryCost, Runtime
from equilibria.paper.runs import Figures
from equilibria.paper.sheet import Sheet, count, form
from equilibria.paper.tables import Contest, MeasuredTable, Row, Scale, Setting, TrainedTable

NOT_RUN = "not run"
_SCALED = "The models are scaled down ({scale}): compare the rows with each other, not with the paper."
_SIZES = "size, inner: parameters in all and outside the embedding, the paper's and ours."


@dataclass(frozen=True)
class RowResult:
    """The state of a row.

    Attributes:
        size: our parameters at the scale; None where the recipe cannot be read.
        figures: of the finished run; None without one.
        note: why there is none, or "".
        signal: the signal that stopped its training, if one did.
    """

    row: Row
    size: Size | None
    figures: Figures | None
    note: str = ""
    signal: int | None = None

    def number(self, name: str) -> float | None:
        """A figure of the run."""
        value = self.figures.get(name) if self.figures is not None else None
        if isinstance(value, Mapping):  # a figure per token
            value = value.get("mean")
        return float(value) if isinstance(value, int | float) else None


def trained_json(table: TrainedTable, scale: Scale, seed: int, outcomes: Sequence[RowResult]) -> dict[str, object]:
    rows = [
        {
            **_published(outcome.row),
            "recipe": f"{table.name}/{outcome.row.recipe}.toml",
            "size": None if outcome.size is None else asdict(outcome.size),
            "status": NOT_RUN if outcome.figures is None else "run",
            "note": outcome.note,
            "figures": outcome.figures,
        }
        for outcome in outcomes
    ]
    return {**_heading(table, scale, seed), "rows": rows}


def trained_sheet(table: TrainedTable, scale: Scale, outcomes: Sequence[RowResult]) -> Sheet:
    """The paper's table with our columns beside its own."""
    precise = ".3g" if table.figure == "loss" else ",.1f"
    rows = []
    for outcome in outcomes:
        row, size, ours = outcome.row, outcome.size, outcome.number(table.figure)
        rows.append(
            [
                row.model,
                *(count(row.parameters), count(size and size.total)),
                *(count(row.inner), count(size and size.inner)),
                *(form(row.figure, precise), NOT_RUN if outcome.figures is None else form(ours, precise)),
                form(outcome.number("residual"), ".0e"),
                form(outcome.number("evaluations_per_solve"), ".1f"),
            ]
        )
    headers = ["model", "size", "ours", "inner", "ours", "paper", "ours", "resid.", "eval."]
    solves = "resid., eval.: mean residual per token, and evaluations of the cell per solve, of equilibrium models."
    read = {
        f"Read for it: {outcome.figures['data']}, {outcome.figures['split']}."
        for outcome in outcomes
        if outcome.figures
    }
    return Sheet(table.title, headers, rows, [*_scaled(scale), _SIZES, solves, *sorted(read), *_reasons(outcomes)])


def memory_json(
    table: MeasuredTable, scale: Scale, seed: int, contests: Sequence[Sequence[MemoryCost]]
) -> dict[str, object]:
    """Every row that was measured, contest by contest."""

    def measured(cost: MemoryCost) -> dict[str, object]:
        return {
            **_published(cost.row),
            "size": asdict(cost.size),
            "saved_bytes": cost.saved,
            "peak_bytes": cost.peak,
            "ratio": cost.ratio,
            "peak_ratio": cost.peak_ratio,
        }

    rows = [list(map(measured, costs)) for costs in contests]
    return {**_heading(table, scale, seed), "setting": asdict(table.settings[scale]), "contests": rows}


def memory_sheet(table: MeasuredTable, scale: Scale, contests: Sequence[Sequence[MemoryCost]]) -> Sheet:
    """Gigabytes, and shares of the first of each contest."""
    rows = [
        [
            cost.row.model,
            *(count(cost.row.inner), count(cost.size.inner)),
            *(_bytes(cost.row.gigabytes and cost.row.gigabytes * 1e9), form(_share(cost.row, costs[0].row), ".2f")),
            *(_bytes(cost.saved), form(cost.ratio, ".2f"), _bytes(cost.peak), form(cost.peak_ratio, ".2f")),
        ]
        for costs in contests
        for cost in costs
    ]
    headers = ["model", "inner", "ours", "memory", "ratio", "saved", "ratio", "peak", "ratio"]
    notes = [
        *_scaled(scale),
        f"{_batches(table.settings[scale])}, after as many; ratios are to the explicit model, the first of each group.",
        "Memory: the paper's, without word embeddings. Saved: what a step of ours keeps for its backward pass, without "
        "softmax and weights. Peak: all that is new at any time of both passes, gradients among it, without softmax.",
    ]
    return Sheet(table.title, headers, rows, notes)


def runtime_json(
    table: MeasuredTable, scale: Scale, seed: int, contests: Sequence[tuple[Contest, Sequence[Runtime]]]
) -> dict[str, object]:
    """Every row that was timed, contest by contest."""
    found = [
        {
            "published": {"training": contest.training, "inference": contest.inference},
            "rows": [{**_published(cost.row), **asdict(cost), "row": cost.row.name} for cost in costs],
        }
        for contest, costs in contests
    ]
    return {**_heading(table, scale, seed), "setting": asdict(table.settings[scale]), "contests": found}


def runtime_sheet(table: MeasuredTable, scale: Scale, contests: Sequence[tuple[Contest, Sequence[Runtime]]]) -> Sheet:
    """Medians, with the quartiles of the ratios."""
    rows = [
        [
            cost.row.model,
            *(form(contest.training if cost is costs[-1] else None, ".2f"), _ratio(cost.training_ratio)),
            *(form(contest.inference if cost is costs[-1] else None, ".2f"), _ratio(cost.inference_ratio)),
        ]
        for contest, costs in contests
        for cost in costs
    ]
    trained = sorted({cost.row.name for _, costs in contests for cost in costs if cost.trained})
    headers = ["model", "training", "ours", "inference", "ours"]
    notes = [
        *_scaled(scale),
        f"{_batches(table.settings[scale])}; medians and quartiles of {table.settings[scale].rounds} rounds in which "
        f"all take turns; in terms of the first of each group, the explicit model.",
        f"Trained weights: {', '.join(trained) or 'none'}. Untrained models may converge sooner or later.",
    ]
    return Sheet(table.title, headers, rows, notes)


def _batches(setting: Setting) -> str:
    return f"Batches of {setting.batch_size} × {setting.segment_length} tokens"


def _bytes(number: float | None) -> str:
    return "–" if number is None else f"{count(number)}B"


def _ratio(figure: Quartiles) -> str:
    return f"{figure.median:.2f} ({figure.lower_quartile:.2f}–{figure.upper_quartile:.2f})"


def _published(row: Row) -> dict[str, object]:
    published = {name: getattr(row, name) for name in ("parameters", "inner", "figure", "gigabytes")}
    return {"name": row.name, "model": row.model, "published": published}


def _heading(table: TrainedTable | MeasuredTable, scale: Scale, seed: int) -> dict[str, object]:
    return {"table": table.name, "title": table.title, "scale": scale, "seed": seed}


def _share(row: Row, first: Row) -> float | None:
    return None if row.gigabytes is None or first.gigabytes is None else row.gigabytes / first.gigabytes


def _scaled(scale: Scale) -> list[str]:
    return [] if scale == "full" else [_SCALED.format(scale=scale)]


def _reasons(outcomes: Sequence[RowResult]) -> list[str]:
    """Each note once, with the rows that it is about."""
    about: dict[str, list[str]] = {}
    for outcome in outcomes:
        if outcome.note:
            about.setdefault(outcome.note, []).append(outcome.row.name)
    return [f"{', '.join(names)}: {note}." for note, names in about.items()]
