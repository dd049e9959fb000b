"""The default model against its explicit twin: the same cell, tied until it is 18 layers deep.

Both start from the same weights, see the same batches and take their steps in turn, in one process, so that the noise
of the machine meets both. Prints the ratios DEQ / twin and both validation curves.

    equilibria bench twin [--json] [--steps N] [--d-model D] [--blocks N] [--seed S] [--threads N] [--out FILE]
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import equilibria as eq
from benchmarks._harness import options_of, prepare, publish, spread
from benchmarks._laboratory_table import seconds_to
from equilibria.cells import ContractiveCell
from equilibria.configuration import Recipe, RunRecipe, TrainingRecipe
from equilibria.configuration.building import build_model
from equilibria.data import EmbeddedText, FolderText, TokenizerSpec
from equilibria.data.batches import TrainingStream
from equilibria.data.prepared import EncodedSplit, opened
from equilibria.depths import Depth, Equilibrium, UnrolledDepth
from equilibria.inference.evaluation import Evaluation, evaluate_model
from equilibria.measuring.spread import ratios
from equilibria.measuring.steps import timed_step
from equilibria.models import LanguageModel, LanguageModelRecipe
from equilibria.training.loop import TrainingLoop

TWIN_LAYERS = 18


@dataclass
class Contender:
    """One model in training, with everything that was measured of it."""

    loop: TrainingLoop
    step_seconds: list[float] = field(default_factory=list)
    pass_seconds: list[float] = field(default_factory=list)
    curve: list[dict[str, Any]] = field(default_factory=list)

    @property
    def model(self) -> LanguageModel:
        assert isinstance(self.loop.model, LanguageModel)
        return self.loop.model

    def step(self) -> None:
        """One timed training step."""
        self.step_seconds.append(timed_step(self.loop))

    def evaluate_model(self, split: EncodedSplit, recipe: TrainingRecipe) -> Evaluation:
        """One timed evaluation pass; a point of the curve."""
        result = evaluate_model(
            self.model, split, recipe.batch_size, recipe.segment_length, max_tokens=recipe.evaluate_tokens
        )
        self.pass_seconds.append(result.seconds)
        self.curve.append(
            {
                "step": self.loop.done,
                "seconds": sum(self.step_seconds),
                "loss": result.loss,
                "residual": result.residual.mean,
                "residual_p95": result.residual.p95,
                "evaluations": result.evaluations_per_solve,
            }
        )
        return result


def recipe_of(options: Namespace) -> Recipe:
    """The default recipe at the size asked for."""
    sizes = {"heads": max(1, options.d_model // 32), "inner": 4 * options.d_model, "blocks": options.blocks}
    training = TrainingRecipe(
        steps=options.steps,
        seed=options.seed,
        evaluate_every=options.evaluate_every,
        evaluate_tokens=options.evaluate_tokens,
    )
    spec = TokenizerSpec("bytes")
    data = EmbeddedText(tokenizer=spec) if options.text is None else FolderText(options.text, tokenizer=spec)
    model = LanguageModelRecipe(cell=partial(ContractiveCell, d_model=options.d_model, **sizes))
    return Recipe(run=RunRecipe(name="twin"), data=data, model=model, training=training)


def twin_of(recipe: Recipe, blocks: int) -> Recipe:
    """The same cell applied until it is 18 layers deep, by ordinary backpropagation."""
    return replace(recipe, model=replace(recipe.model, depth=UnrolledDepth(TWIN_LAYERS // blocks)))


def contender(recipe: Recipe, vocabulary_size: int, tokens: np.ndarray) -> Contender:
    """A model with the weights of the recipe's seed, ready to train."""
    training = recipe.training
    torch.manual_seed(training.seed)
    batches = TrainingStream(tokens, training.batch_size * training.accumulation, training.segment_length)
    return Contender(TrainingLoop(build_model(recipe, vocabulary_size), training, batches))


def race(deq: Contender, twin: Contender, recipe: Recipe, valid: EncodedSplit, console: Console) -> None:
    """Alternate the two step by step, who goes first changing each time; evaluate both now and then."""
    training = recipe.training
    for step in range(training.steps):
        pair = (deq, twin) if step % 2 == 0 else (twin, deq)
        for one in pair:
            one.step()
        if (step + 1) % training.evaluate_every == 0 or step + 1 == training.steps:
            ours, theirs = (one.evaluate_model(valid, training) for one in (deq, twin))
            console.print(
                f"step {step + 1}: loss {ours.loss:.4f} / {theirs.loss:.4f}, residual {ours.residual.mean or 0:.1e}, "
                f"seconds {sum(deq.step_seconds):.0f} / {sum(twin.step_seconds):.0f}"
            )


def memory_of(model: LanguageModel, recipe: Recipe) -> dict[str, int]:
    """Bytes saved for the backward pass by the twin or, for an equilibrium, by each kind of gradient."""
    training = recipe.training
    shape = (training.batch_size, training.segment_length)
    tokens = torch.randint(model.embedding.vocabulary_size, shape, generator=torch.Generator().manual_seed(0))
    known = [*model.parameters(), tokens]

    def measured(depth: Depth | None = None) -> int:
        return eq.saved_bytes(lambda: model.train()(tokens, tokens, depth=depth).loss, known)

    depth = model.depth
    if not isinstance(depth, Equilibrium):
        return {"plain": measured()}
    found = {"default": measured()}
    steps = depth.gradient.steps if isinstance(depth.gradient, eq.Phantom) else 1
    kinds = {
        "phantom": eq.Phantom(steps),
        "phantom, checkpointed": eq.Phantom(steps, checkpoint=True),
        "implicit": eq.Implicit(),
    }
    for name, gradient in kinds.items():
        found[name] = measured(replace(depth, gradient=gradient))
    return found


def causality_of(model: LanguageModel, valid: EncodedSplit) -> dict[str, float]:
    """The largest change of an earlier logit when every later token changes, by budget of prefix Anderson."""
    tokens = torch.from_numpy(np.asarray(valid.tokens[: 8 * 128], dtype=np.int64)).reshape(8, 128)
    leaks = {}
    for budget in (3, 6, 12):
        solver = eq.Anderson(tol=1e-3, max_evaluations=budget, scope="prefix")
        same = LanguageModel(model.embedding, model.cell, Equilibrium(eval_solver=solver))
        leaks[str(budget)] = eq.audit_causality(same, tokens).leak
    return leaks


def figures(deq: Contender, twin: Contender, recipe: Recipe, valid: EncodedSplit) -> dict[str, object]:
    """Everything that was measured."""
    ours, theirs = memory_of(deq.model, recipe), memory_of(twin.model, recipe)["plain"]
    common = max(min(point["loss"] for point in one.curve) for one in (deq, twin))
    ours_to, theirs_to = seconds_to(deq.curve, common), seconds_to(twin.curve, common)
    assert ours_to is not None
    assert theirs_to is not None
    return {
        "sizes": {
            "d_model": deq.model.cell.d_model,
            "blocks": deq.model.cell.layers_per_application,
            "steps": recipe.training.steps,
            "seed": recipe.training.seed,
            "threads": torch.get_num_threads(),
            "parameters": sum(p.numel() for p in deq.model.parameters()),
        },
        "depth": repr(deq.model.depth),
        "twin": repr(twin.model.depth),
        "training_step_ratio": asdict(ratios(deq.step_seconds, twin.step_seconds)),
        "training_step_seconds": {"deq": spread(deq.step_seconds), "twin": spread(twin.step_seconds)},
        "evaluation_pass_ratio": asdict(ratios(deq.pass_seconds, twin.pass_seconds)),
        "evaluation_pass_seconds": {"deq": spread(deq.pass_seconds), "twin": spread(twin.pass_seconds)},
        "saved_bytes_ratio": {name: size / theirs for name, size in ours.items()},
        "saved_bytes": {**ours, "twin": theirs},
        "common_loss": common,
        "time_to_loss_ratio": ours_to / theirs_to,
        "final_loss": {"deq": deq.curve[-1]["loss"], "twin": twin.curve[-1]["loss"]},
        "final_residual": {"mean": deq.curve[-1]["residual"], "p95": deq.curve[-1]["residual_p95"]},
        "causality_leak": causality_of(deq.model, valid),
        "curves": {"deq": deq.curve, "twin": twin.curve},
    }


def show(result: dict, console: Console) -> None:
    """The table a person reads."""
    table = Table("DEQ / twin", "measured", "quartiles", "to reach")

    def row(name: str, figure: dict[str, float], goal: str) -> None:
        quartiles = f"{figure['lower_quartile']:.3f} – {figure['upper_quartile']:.3f}"
        table.add_row(name, f"{figure['median']:.3f}", quartiles, goal)

    row("time per training step", result["training_step_ratio"], "≤ 0.65")
    row("time per evaluation pass", result["evaluation_pass_ratio"], "≤ 0.70")
    goals = {"phantom": "≤ 0.50", "phantom, checkpointed": "≤ 0.20", "implicit": "≤ 0.20"}
    for name, ratio in result["saved_bytes_ratio"].items():
        table.add_row(f"saved bytes, {name}", f"{ratio:.3f}", "", goals.get(name, ""))
    table.add_row(f"time to loss {result['common_loss']:.4f}", f"{result['time_to_loss_ratio']:.3f}", "", "≤ 1.0")
    table.add_row("residual at evaluation", f"{result['final_residual']['mean']:.1e}", "", "≤ 1e-2")
    table.add_row("future leak, worst", str(max(result["causality_leak"].values())), "", "0.0")
    final = result["final_loss"]
    table.add_row("final validation loss", f"{final['deq']:.4f} / {final['twin']:.4f}", "", "")
    console.print(table)


def parse(arguments: list[str]) -> Namespace:
    """The options."""
    parser = options_of("twin", __doc__)
    parser.add_argument("--steps", type=int, default=2000, help="training steps of each")
    parser.add_argument("--d-model", type=int, default=128, help="width, a multiple of 32")
    parser.add_argument("--blocks", type=int, default=1, help="blocks per application")
    parser.add_argument("--seed", type=int, default=0, help="of weights")
    parser.add_argument("--text", type=Path, help="folder of train/valid text instead of the embedded one")
    parser.add_argument("--evaluate-every", type=int, default=100, help="steps between evaluations")
    parser.add_argument("--evaluate-tokens", type=int, default=32768, help="validation tokens at most")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run the benchmark; 0 when it ran."""
    options = parse(arguments)
    console = prepare(options)
    recipe = recipe_of(options)
    text = opened(recipe.data)
    train, valid = text.split("train"), text.split("valid")
    assert isinstance(train, EncodedSplit)
    assert isinstance(valid, EncodedSplit)
    size = text.tokenizer.vocabulary_size
    deq, twin = (contender(one, size, train.tokens) for one in (recipe, twin_of(recipe, options.blocks)))
    race(deq, twin, recipe, valid, console)
    publish("twin", arguments, options, figures(deq, twin, recipe, valid), show)
    return 0
