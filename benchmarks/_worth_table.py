"""A study's results as a person reads them: a table of all readings, and accuracy against what was read."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks._harness import save_picture
from benchmarks._worth_studies import STUDIES, Goal
from equilibria.paper.sheet import Sheet, count, form


def right(study: str, seed: dict[str, Any]) -> bool:
    """Whether a seed did what the study asks for, as far as it was read."""
    found = [(goal, seed["readings"].get(goal.reading, {}).get(goal.figure)) for goal in STUDIES[study].goals]
    known = [(goal, value) for goal, value in found if value is not None]
    return bool(known) and all(value >= goal.least for goal, value in known)


def sheet_of(result: dict[str, Any]) -> Sheet:
    """The table: a column for each row of the study, medians over its seeds and the worst of them."""
    study = STUDIES[result["study"]]
    rows = {name: list(row["seeds"].values()) for name, row in result["rows"].items() if row["seeds"]}
    lines = [["weights", *[count(seeds[0]["size"]["total"]) for seeds in rows.values()]]]
    for one in study.readings:
        found = [[seed["readings"].get(one, {}).get(study.shown) for seed in seeds] for seeds in rows.values()]
        lines.append([one, *(_cell(values, study.less_is_better) for values in found)])
    reached = [f"{sum(right(result['study'], seed) for seed in seeds)}/{len(seeds)}" for seeds in rows.values()]
    lines.append(["seeds right", *reached])
    notes = [
        f"figures: {_words(study.shown)}, median of the seeds and in brackets the worst where it is another",
        f"right: a seed with {' and '.join(map(_goal, study.goals))}, as far as it was read",
        *_solves(result),
    ]
    return Sheet(result["about"], ["", *rows], lines, notes)


def _goal(goal: Goal) -> str:
    return f"{_words(goal.figure)} at least {goal.least:g} at {goal.reading}"


def _solves(result: dict[str, Any]) -> list[str]:
    """What the solves of each row were like, at the last reading that it has."""
    lines = []
    for name, row in result["rows"].items():
        last = [list(seed["readings"].items())[-1] for seed in row["seeds"].values() if seed["readings"]]
        solved = [(reading, one) for reading, one in last if one["evaluations"]["mean"] is not None]
        if solved:
            spent = (_median([one["evaluations"][key] for _, one in solved]) for key in ("mean", "median", "p90"))
            radius = _median([one["spectral_radius"]["mean"] for _, one in solved if one["spectral_radius"]])
            worst = max(one["unconverged"] for _, one in solved)
            lines.append(
                f"{name}, {solved[0][0]}: evaluations per token {' / '.join(form(one, '.1f') for one in spent)} "
                f"(mean / median / 90th percentile), spectral radius {form(radius, '.2f')}, "
                f"tokens not converged {worst:.1%} at most"
            )
    return lines


def _cell(values: Sequence[float | None], less_is_better: bool) -> str:
    """The median and, where it is another, the worst."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    middle, worst = f"{statistics.median(known):.3f}", f"{(max if less_is_better else min)(known):.3f}"
    return middle if worst == middle else f"{middle} ({worst})"


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _words(figure: str) -> str:
    return {"last_accuracy": "accuracy at the last position", "sequence_accuracy": "share of whole sequences"}.get(
        figure, figure.replace("_", " ")
    )


def draw(result: dict[str, Any], path: Path) -> None:
    """The study's figure for each reading: a line for each row, medians, with all seeds around it. The first row's is
    broad, so that it shows below one that covers it."""
    from matplotlib.figure import Figure

    study = STUDIES[result["study"]]
    names = list(study.readings)
    figure = Figure(figsize=(7.6, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, (name, row) in enumerate(result["rows"].items()):
        seeds = list(row["seeds"].values())
        columns = [[seed["readings"].get(reading, {}).get(study.shown) for seed in seeds] for reading in names]
        places = [place for place, column in enumerate(columns) if any(value is not None for value in column)]
        if not places:
            continue
        known = [[value for value in columns[place] if value is not None] for place in places]
        (line,) = axes.plot(places, [statistics.median(column) for column in known], label=name)
        if number:
            line.set(marker="o", markersize=4)
        else:
            line.set(linewidth=6, alpha=0.5, solid_capstyle="round")
        ends = [min(column) for column in known], [max(column) for column in known]
        axes.fill_between(places, *ends, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set_xticks(range(len(names)), [name.replace(" ", "\n") for name in names], fontsize=9)
    if study.shown.endswith("accuracy"):
        axes.set_ylim(-0.03, 1.03)
    axes.set_ylabel(_words(study.shown))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    axes.set_title(result["about"], fontsize=10)
    save_picture(figure, path)
