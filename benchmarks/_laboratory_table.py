"""The laboratory's results as a person reads them: ratios to the better twin, a table, and a figure."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from benchmarks._harness import save_picture
from equilibria.paper.sheet import Sheet, form

_AXES = ("step", "seconds", "loss")
NEAR = 1.003
"""A loss that is so many times another's counts as equal."""


def seconds_to(curve: list[dict[str, float]], loss: float) -> float | None:
    """Training time until a validation loss was first reached, interpolated; None where it never was."""
    before = None
    for point in curve:
        if point["loss"] <= loss:
            if before is None:
                return point["seconds"]
            share = (before["loss"] - loss) / (before["loss"] - point["loss"])
            return before["seconds"] + share * (point["seconds"] - before["seconds"])
        before = point
    return None


def ratios(row: dict[str, Any], twin: dict[str, Any]) -> dict[str, float | None]:
    """A row's figures over those of the twin with the same seed, means over the seeds that both have.

    Returns:
        Final loss, time to the twin's final loss and to 1.003 of it (None where a seed never gets there), saved bytes.
    """
    pairs = [(row["seeds"][seed], twin["seeds"][seed]) for seed in row["seeds"] if seed in twin["seeds"]]
    if not pairs:
        return {"loss": None, "time": None, "near": None, "saved": None}

    def time(share: float) -> float | None:
        times = [seconds_to(ours["curve"], share * theirs["loss"]) for ours, theirs in pairs]
        reached = [time / theirs["training_seconds"] for time, (_, theirs) in zip(times, pairs, strict=True) if time]
        return statistics.fmean(reached) if len(reached) == len(pairs) else None

    return {
        "loss": statistics.fmean(ours["loss"] / theirs["loss"] for ours, theirs in pairs),
        "time": time(1.0),
        "near": time(NEAR),
        "saved": statistics.fmean(ours["saved_bytes"] / theirs["saved_bytes"] for ours, theirs in pairs),
    }


def better_twin(rows: dict[str, Any]) -> dict[str, Any]:
    """The twin with the least mean loss; one without seeds where there is none."""
    twins = [row for name, row in rows.items() if name.startswith("twin") and row["seeds"]]
    if not twins:
        return {"seeds": {}}
    return min(twins, key=lambda row: statistics.fmean(seed["loss"] for seed in row["seeds"].values()))


def sheet_of(result: dict[str, Any], whole: bool = False) -> Sheet:
    """The table a person reads: means over seeds, best first.

    Args:
        result: of the benchmark.
        whole: with all columns, of which a terminal has no room.
    """
    twin = better_twin(result["rows"])
    rows = []
    for name, row in result["rows"].items():
        seeds = list(row["seeds"].values())
        if seeds:
            against = ratios(row, twin)
            columns = {"row": name, "steps": f"{row['steps']:,}"} | _judged(seeds, against)
            if whole:
                columns |= {"near": form(against["near"], ".2f")} | _described(seeds)
            rows.append((statistics.fmean(seed["loss"] for seed in seeds), columns))
    notes = [
        "loss: validation, nats per token, at the recipe's own tolerance, and its deviation",
        "best: the least loss in the course of training, mean over the seeds",
        "/ twin: mean of the ratios to the better twin, seed by seed",
        "time: to the twin's final loss, over the twin's time",
        "saved: bytes kept for the backward pass, over the twin's",
        "in 16: tokens within a residual of 1e-2 after 16 evaluations",
        "at 32: the loss after 32 evaluations over that after 16",
    ]
    if whole:
        notes += [
            "near: time to 1.003 of the twin's final loss; seconds: of all training steps",
            "radius: spectral, per token, largest; gain: of a token's equilibrium on the next one's",
            "error: of the training gradient against the implicit one",
        ]
    rows.sort(key=lambda row: row[0])
    headers = list(rows[0][1]) if rows else ["row"]
    return Sheet(result["data"], headers, [list(columns.values()) for _, columns in rows], notes)


def _judged(seeds: list[dict[str, Any]], against: dict[str, float | None]) -> dict[str, str]:
    """The columns by which a row is judged."""
    losses = [seed["loss"] for seed in seeds]
    spread = f" ±{statistics.stdev(losses):.3f}" if len(losses) > 1 else ""
    budgets = [seed["budgets"] for seed in seeds if "budgets" in seed]
    return {
        "loss": f"{statistics.fmean(losses):.4f}{spread}",
        "best": form(_mean([min(point["loss"] for point in seed["curve"]) for seed in seeds]), ".3f"),
        "/ twin": form(against["loss"], ".4f"),
        "time": form(against["time"], ".2f"),
        "saved": form(against["saved"], ".2f"),
        "in 16": form(_mean([at["16"]["converged"] for at in budgets]), ".1%"),
        "at 32": form(_mean([at["32"]["loss"] / at["16"]["loss"] for at in budgets]), ".4f"),
    }


def _described(seeds: list[dict[str, Any]]) -> dict[str, str]:
    """The others."""
    return {
        "seeds": str(len(seeds)),
        "seconds": form(statistics.fmean(seed["training_seconds"] for seed in seeds), ".0f"),
        "radius": form(_mean([seed.get("radius") for seed in seeds]), ".2f"),
        "gain": form(_mean([seed.get("token_gain") for seed in seeds]), ".2f"),
        "error": form(_mean([seed.get("gradient_error") for seed in seeds]), ".2f"),
    }


def _mean(of: list[float | None]) -> float | None:
    given = [value for value in of if value is not None]
    return statistics.fmean(given) if given else None


def draw(result: dict[str, Any], path: Path) -> None:
    """Validation loss against steps and against the time of training, a curve for each row: the mean of its seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    ends = []
    for name, row in result["rows"].items():
        curves = [seed["curve"] for seed in row["seeds"].values()]
        if not curves:
            continue
        points = [[statistics.fmean(point[key] for point in at) for at in zip(*curves, strict=True)] for key in _AXES]
        for axes, key in ((left, 0), (right, 1)):
            style = "--" if name.startswith(("twin", "stack")) else "-"
            axes.plot(points[key], points[2], style, marker="o", markersize=3, label=f"{name} ({len(curves)})")
        ends.append(points[2][-1])
    left.set_ylim(min(ends) - 0.02, 1.25 * min(ends))
    left.set_xlabel("steps")
    right.set_xlabel("seconds of training steps")
    left.set_ylabel("validation loss, nats per token")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    right.legend(title="row (seeds)", fontsize=8)
    figure.suptitle(result["data"], fontsize=10)
    save_picture(figure, path)
