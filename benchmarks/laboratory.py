"""The laboratory: what is tried for an equilibrium that learns as well as depth, each beside its explicit rivals.

Contenders are the recipes of `recipes/laboratory/`, and variants of its default that are given as keys, so that every
row of the lab notes is one command away. All rows of a run see the same batches, step by step in turn; the results file
grows by rows and seeds.

    equilibria bench laboratory --proxy pairs|bytes --data-path FOLDER [--rows NAME ...] [--variant NAME KEY=VALUE ...]
                                [--seeds S ...] [--steps N] [--threads N] [--json] [--out FILE]
"""

from __future__ import annotations

import statistics
from argparse import Namespace
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

import equilibria as eq
from benchmarks._harness import options_of, prepare, publish
from benchmarks._race import Racer, run
from equilibria.configuration import Recipe, read_recipe
from equilibria.data.batching import Segment
from equilibria.depths import Equilibrium
from equilibria.errors import UserError
from equilibria.models import LanguageModel
from equilibria.reproduction.runs import write_text
from equilibria.reproduction.sheet import Sheet, form

RECIPES = Path(__file__).parents[1] / "recipes" / "laboratory"
PROXIES = {
    "pairs": ["--data.tokenizer", "bpe", "--data.vocabulary_size", "4096", "--training.segment_length", "64"],
    "bytes": ["--data.tokenizer", "bytes", "--training.segment_length", "128"],
}
BUDGETS = (2, 4, 8, 16, 32, 64)
TOLERANCE = 1e-2
"""The residual within which a token counts as converged."""


def recipes_of(options: Namespace) -> dict[str, Recipe]:
    """The rows that are asked for, by name.

    Raises:
        UserError: there is no such row, or a variant is not well formed.
    """
    flags = [*PROXIES[options.proxy], "--data.source", "folder", "--data.path", str(options.data_path)]
    flags += ["--training.steps", str(options.steps), "--training.evaluate_every", str(max(1, options.steps // 10))]
    files = {path.stem: path for path in sorted(RECIPES.glob("*.toml"))}
    for name in options.rows:
        if name not in files:
            raise UserError(f"--rows {name}: there is no such recipe in {RECIPES}; it has {', '.join(files)}")
    recipes = {name: read_recipe(files[name], flags) for name in options.rows}
    for name, *settings in options.variant:
        if name in files or not all("=" in setting for setting in settings):
            raise UserError(f"--variant {name}: give a new name and the keys it changes in the default, KEY=VALUE …")
        changes = [part for setting in settings for part in _flag(setting)]
        recipes[name] = read_recipe(files["default"], [*flags, *changes])
    if not recipes:
        raise UserError(f"name rows with --rows ({', '.join(files)}) or variants with --variant")
    return recipes


def _flag(setting: str) -> tuple[str, str]:
    key, _, value = setting.partition("=")
    return f"--{key}", value


@dataclass(frozen=True)
class Solved:
    """A trained model's equilibrium on validation text.

    Args:
        model: whose depth is an equilibrium.
        segments: of the text, read from the start.
    """

    model: LanguageModel
    segments: list[Segment]

    @torch.no_grad()
    def at_budget(self, budget: int) -> dict[str, float]:
        """Loss, mean residual and share of converged tokens after so many evaluations, whatever the tolerance."""
        depth = self.model.depth
        assert isinstance(depth, Equilibrium)
        self.model.depth = replace(depth, eval_solver=replace(depth.eval_solver, tol=1e-9, max_evaluations=budget))
        memory, losses, residuals = None, [], []
        for segment in self.segments:
            output = self.model(segment.inputs, segment.targets, memory)
            memory = output.memory
            assert output.loss is not None
            assert output.solution is not None
            losses.append(float(output.loss))
            residuals.append(output.solution.residual.expand(segment.inputs.shape).flatten())
        self.model.depth = depth
        residual = torch.cat(residuals)
        return {
            "loss": statistics.fmean(losses),
            "residual": float(residual.mean()),
            "converged": float((residual <= TOLERANCE).float().mean()),
        }

    def dynamics(self) -> dict[str, float | None]:
        """Spectral radius, gain from token to token, and the error of the gradient, on one short text."""
        tokens = self.segments[0].inputs[:1, :32]
        with torch.no_grad():
            inputs = self.model.embedding(tokens) * self.model.cell.d_model**0.5
            context = self.model.cell.context(inputs, None)
        start = self.model.cell.initial_state(inputs)

        def f(z: Tensor) -> Tensor:
            return self.model.cell(z, context)

        tight = eq.Anderson(tol=1e-5, max_evaluations=300, history=5, scope="prefix")
        with torch.no_grad():
            z = eq.fixed_point(f, start, tight, on_failure="ignore").value
        last = z.shape[1] - 1
        return {
            "radius": eq.spectral_radius(f, z, iterations=z.shape[-1], tokens=[last // 2, last]),
            "token_gain": token_gain(f, z, last),
            "gradient_error": self._gradient_error(tokens),
        }

    def _gradient_error(self, tokens: Tensor) -> float | None:
        """Relative error of the training gradient of the cell's weights; None where the reference did not converge."""
        model, depth = self.model, self.model.depth
        assert isinstance(depth, Equilibrium)
        with torch.no_grad():
            inputs = model.embedding(tokens) * model.cell.d_model**0.5
        context = model.cell.context(inputs, None)
        weights = {name: weight for name, weight in model.cell.named_parameters() if weight.ndim == 2}
        start = model.cell.initial_state(inputs)
        try:
            errors = eq.gradient_error(
                lambda z: model.cell(z, context), start, depth.solver, depth.gradient, parameters=weights
            )
        except eq.ConvergenceError:
            return None
        return statistics.fmean(error.relative_error for error in errors.values())


def token_gain(f: Any, z: Tensor, token: int) -> float:
    """How much a small change of the token before changes a token at the equilibrium: the norm of
    `(I − J_tt)⁻¹ J_t,t−1`, with the blocks of the Jacobian at `z` (1, L, D)."""
    point = z.detach().requires_grad_()
    value = f(point)[0, token]
    rows = [torch.autograd.grad(value[d], point, retain_graph=True)[0][0] for d in range(value.shape[-1])]
    jacobian = torch.stack(rows).double()  # (D, L, D)
    own, before = jacobian[:, token], jacobian[:, token - 1]
    return float(torch.linalg.matrix_norm(torch.linalg.solve(torch.eye(len(own)).to(own) - own, before), ord=2))


def figures_of(racer: Racer) -> dict[str, Any]:
    """Everything that is measured of a trained row."""
    model, found = racer.contender.loop.evaluated, racer.figures()
    if isinstance(model, LanguageModel) and isinstance(model.depth, Equilibrium):
        model.eval()
        solved = Solved(model, list(islice(racer.validation(), 8)))
        found["budgets"] = {str(budget): solved.at_budget(budget) for budget in BUDGETS}
        found |= solved.dynamics()
    return found


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
        Final loss, time to the twin's final loss (None where a seed never reaches it), saved bytes.
    """
    pairs = [(row["seeds"][seed], twin["seeds"][seed]) for seed in row["seeds"] if seed in twin["seeds"]]
    if not pairs:
        return {"loss": None, "time": None, "saved": None}
    times = [seconds_to(ours["curve"], theirs["loss"]) for ours, theirs in pairs]
    reached = [time / theirs["training_seconds"] for time, (_, theirs) in zip(times, pairs, strict=True) if time]
    return {
        "loss": statistics.fmean(ours["loss"] / theirs["loss"] for ours, theirs in pairs),
        "time": statistics.fmean(reached) if len(reached) == len(pairs) else None,
        "saved": statistics.fmean(ours["saved_bytes"] / theirs["saved_bytes"] for ours, theirs in pairs),
    }


def sheet_of(result: dict[str, Any]) -> Sheet:
    """The table a person reads: means over seeds, best first."""
    rows = []
    for name, row in result["rows"].items():
        seeds = list(row["seeds"].values())
        if not seeds:
            continue
        losses = [seed["loss"] for seed in seeds]
        against = ratios(row, result["rows"].get("twin", {"seeds": {}}))
        spread = f" ± {statistics.stdev(losses):.3f} ({len(seeds)})" if len(seeds) > 1 else ""

        def mean(of: list[float | None]) -> float | None:
            given = [value for value in of if value is not None]
            return statistics.fmean(given) if given else None

        at = [seed["budgets"]["16"] if "budgets" in seed else {} for seed in seeds]
        entries = [
            name,
            f"{statistics.fmean(losses):.4f}{spread}",
            form(against["loss"], ".4f"),
            form(statistics.fmean(seed["training_seconds"] for seed in seeds), ".0f"),
            form(against["time"], ".2f"),
            form(against["saved"], ".2f"),
            form(mean([one.get("converged") for one in at]), ".1%"),
            form(mean([seed.get("radius") for seed in seeds]), ".2f"),
            form(mean([seed.get("gradient_error") for seed in seeds]), ".2f"),
        ]
        rows.append((statistics.fmean(losses), entries))
    steps = result["settings"]["steps"]
    notes = [
        "loss: validation, nats per token, at the recipe's own tolerance; / twin: mean of the ratios seed by seed.",
        "seconds: of all training steps. time: to the twin's final loss, over the twin's time. saved: bytes / twin's.",
        "within 16: tokens whose residual is at most 1e-2 after 16 evaluations. radius: spectral, per token, largest.",
        "error: of the training gradient against the converged implicit one, mean over the cell's matrices.",
    ]
    headers = ["row", "loss", "/ twin", "seconds", "time", "saved", "within 16", "radius", "error"]
    return Sheet(
        f"{result['data']}: {steps:,} steps",
        headers,
        [entries for _, entries in sorted(rows, key=lambda r: r[0])],
        notes,
    )


def show(result: dict[str, Any], console: Console) -> None:
    """The table, and what its columns are."""
    sheet = sheet_of(result)
    console.print(sheet.drawn())
    for note in sheet.notes:
        console.print(note, highlight=False)


def parse(arguments: list[str]) -> Namespace:
    """The options."""
    parser = options_of("laboratory", __doc__)
    parser.add_argument("--proxy", choices=sorted(PROXIES), default="pairs", help="how the text becomes tokens")
    parser.add_argument("--data-path", type=Path, required=True, help="folder of train/valid text")
    parser.add_argument("--rows", nargs="+", default=[], help="recipes of recipes/laboratory")
    parser.add_argument(
        "--variant", nargs="+", action="append", default=[], help="a name, and KEY=VALUE of the default"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds")
    parser.add_argument("--steps", type=int, default=2000, help="training steps")
    parser.add_argument("--checkpoint-every", type=int, default=250, help="steps between checkpoints")
    parser.set_defaults(out=Path("runs/bench/laboratory.json"))
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run the benchmark; 0 when it ran."""
    options = parse(arguments)
    result = run(options, recipes_of(options), prepare(options), figures_of)
    write_text(options.out.with_suffix(".md"), sheet_of(result).markdown())
    publish("laboratory", arguments, options, result, show)
    return 0
