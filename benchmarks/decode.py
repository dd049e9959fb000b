"""Decoding from a cache against solving everything afresh, and against the explicit twin with a cache of its own.

The model is a run's, or the default one of the size asked for, trained for a moment on the embedded text: how many
evaluations a token takes means something of a trained model only. The twin is the same cell applied 18 times; its
speed does not depend on its weights, so it has the model's. Text is read, not drawn, so that all read the same. A
solve starts cold, as that of a segment, or warm, from the state of the token before. The contenders take turns;
seconds are CPU seconds of the process, which a busy machine stretches less than those of a clock.

    equilibria bench decode [--json] [--run RUN | --steps N --d-model D] [--contexts N …] [--batches N …] [--out FILE]
"""

from __future__ import annotations

import time
from argparse import Namespace
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks._harness import options_of, prepare, publish, spread
from equilibria.cells import Cache, ContractiveCell
from equilibria.configuration import Recipe, RunRecipe, TrainingRecipe
from equilibria.configuration.building import build_model
from equilibria.data import EmbeddedText, TokenizerSpec
from equilibria.data.prepared import EncodedSplit, opened
from equilibria.depths import Depth, Equilibrium, UnrolledDepth
from equilibria.inference.loading import load_run, load_task
from equilibria.models import LanguageModel, LanguageModelRecipe
from equilibria.optimization import Cosine
from equilibria.training.loop import TrainingLoop

TWIN_LAYERS = 18


@dataclass
class Decoder:
    """A model that reads on from a cache, and what its tokens have cost."""

    model: LanguageModel
    warm: bool = False
    depth: Depth | None = None
    seconds: list[float] = field(default_factory=list)
    evaluations: list[float] = field(default_factory=list)
    cache: Cache | None = None

    def prefill(self, tokens_BL: Tensor) -> None:
        """Start anew."""
        cache = self.model.prefill(tokens_BL, chunk_length=256, depth=self.depth).cache
        assert isinstance(cache, Cache)
        cache.warm_start, self.cache = self.warm, cache

    def step(self, token_B: Tensor) -> Tensor:
        """Read a token of each row; the logits of the next."""
        assert self.cache is not None
        start = time.process_time()
        step = self.model.decode(token_B, self.cache, depth=self.depth)
        logits = step.logits_BV
        self.seconds.append(time.process_time() - start)
        if step.evaluations_BL is not None:
            self.evaluations.append(float(step.evaluations_BL.float().mean()))
        return logits


@dataclass
class Afresh:
    """The same model without a cache: all tokens so far, for each new one."""

    model: LanguageModel
    seconds: list[float] = field(default_factory=list)

    @torch.no_grad()
    def step(self, tokens_BL: Tensor) -> Tensor:
        """The logits after the last token."""
        start = time.process_time()
        logits = self.model.embedding.logits(self.model(tokens_BL).hidden[:, -1])
        self.seconds.append(time.process_time() - start)
        return logits


def recipe_of(options: Namespace) -> Recipe:
    """The default recipe at the size asked for, with a memory, so that long contexts are nothing new."""
    heads, inner = max(1, options.d_model // 32), 4 * options.d_model
    return Recipe(
        run=RunRecipe(name="decode"),
        data=EmbeddedText(tokenizer=TokenizerSpec("bytes")),
        model=LanguageModelRecipe(
            cell=partial(ContractiveCell, d_model=options.d_model, heads=heads, inner=inner), memory_length=64
        ),
        training=TrainingRecipe(
            steps=options.steps,
            batch_size=8,
            segment_length=64,
            learning_rate=2e-3,
            schedule=Cosine(warmup_steps=50),
            seed=options.seed,
        ),
    )


def trained(options: Namespace, console: Console) -> tuple[LanguageModel, np.ndarray]:
    """The model and the text that it reads."""
    if options.run is not None:
        run = load_run(options.run)
        model, task = run.model, load_task(run)
        text = task.split("valid")
        assert isinstance(text, EncodedSplit)
    else:
        recipe = recipe_of(options)
        task = opened(recipe.data)
        text, training = task.split("valid"), recipe.training
        assert isinstance(text, EncodedSplit)
        torch.manual_seed(training.seed)
        model = build_model(recipe, task.tokenizer.vocabulary_size)
        loop = TrainingLoop(model, training, task.training(training.batch_size, training.segment_length))
        for _ in range(training.steps):
            loop.step()
        console.print(f"trained for {training.steps} steps")
    assert isinstance(model, LanguageModel)
    assert isinstance(model.depth, Equilibrium)
    return model.eval(), np.asarray(text.tokens, dtype=np.int64)


def passages(text: np.ndarray, batch: int, length: int) -> Tensor:
    """Pieces of the text from all over it, `(batch, length)`."""
    starts = np.linspace(0, len(text) - length, batch + 2).astype(int)[1:-1]
    return torch.from_numpy(np.stack([text[start : start + length] for start in starts]))


def setting(model: LanguageModel, text: np.ndarray, context: int, batch: int, options: Namespace) -> dict[str, Any]:
    """All contenders after the same context."""
    twin = UnrolledDepth(TWIN_LAYERS // model.cell.layers_per_application)
    warm, cold, explicit = Decoder(model, warm=True), Decoder(model), Decoder(model, depth=twin)
    afresh = Afresh(model)
    tokens = passages(text, batch, context + options.tokens)
    for decoder in (warm, cold, explicit):
        decoder.prefill(tokens[:, :context])
    stride = max(1, options.tokens // options.afresh)
    for number in range(options.tokens):
        order = (warm, explicit, cold) if number % 2 else (cold, explicit, warm)
        for decoder in order:
            decoder.step(tokens[:, context + number])
        if number % stride == stride - 1:
            afresh.step(tokens[:, : context + number + 1])
    assert warm.cache is not None
    assert explicit.cache is not None

    def per_second(seconds: list[float]) -> dict[str, float]:
        return spread([batch / one for one in seconds])

    return {
        "context": context,
        "batch": batch,
        "tokens_per_second": {
            "cold": per_second(cold.seconds),
            "warm": per_second(warm.seconds),
            "afresh": per_second(afresh.seconds),
            "twin": per_second(explicit.seconds),
        },
        "over_afresh": float(np.median(afresh.seconds) / np.median(cold.seconds)),
        "over_twin": float(np.median(explicit.seconds) / np.median(cold.seconds)),
        "evaluations_per_token": {
            "cold": float(np.mean(cold.evaluations)),
            "warm": float(np.mean(warm.evaluations)),
        },
        "cache_bytes": {"model": warm.cache.bytes, "twin": explicit.cache.bytes},
    }


def agreement(model: LanguageModel, text: np.ndarray, console: Console) -> dict[str, float]:
    """The largest difference of a logit between decoding and a full solve, by tolerance."""
    tokens, found = passages(text, 2, 96), {}
    assert isinstance(model.depth, Equilibrium)
    for tol in (1e-3, 1e-6):
        solver = replace(model.depth.eval_solver, tol=tol, max_evaluations=200)
        tight = Equilibrium(eval_solver=solver)
        with torch.no_grad():
            whole = model(tokens, depth=tight).logits
        step = model.prefill(tokens[:, :48], depth=tight)
        worst = 0.0
        for place in range(48, 96):
            step = model.decode(tokens[:, place], step.cache, depth=tight)
            worst = max(worst, float((step.logits_BV - whole[:, place]).abs().max()))
        found[f"{tol:g}"] = worst
        console.print(f"at tolerance {tol:g} decoding and a full solve differ by {worst:.1e}")
    return found


def show(result: dict, console: Console) -> None:
    """The table a person reads."""
    columns = (
        "context",
        "batch",
        "tokens/s",
        "over afresh",
        "over the twin",
        "evaluations cold / warm",
        "cache, twin's",
    )
    table = Table(*columns, title=result["model"])
    for one in result["settings"]:
        speeds, counts, size = one["tokens_per_second"], one["evaluations_per_token"], one["cache_bytes"]
        table.add_row(
            str(one["context"]),
            str(one["batch"]),
            f"{speeds['cold']['median']:,.0f}",
            f"{one['over_afresh']:.1f}",
            f"{one['over_twin']:.2f}",
            f"{counts['cold']:.2f} / {counts['warm']:.2f}",
            f"{size['model'] / 1e6:.2f} MB, {size['twin'] / size['model']:.0f} times that",
        )
    console.print(table)
    differences = ", ".join(f"{worst:.1e} at {tol}" for tol, worst in result["agreement"].items())
    console.print(f"largest difference of a logit from a full solve: {differences}")


def parse(arguments: list[str]) -> Namespace:
    """The options."""
    parser = options_of("decode", __doc__)
    parser.add_argument("--run", type=Path, help="folder of a run whose model decodes; otherwise one is trained")
    parser.add_argument("--steps", type=int, default=400, help="training steps, where there is no run")
    parser.add_argument("--d-model", type=int, default=256, help="width, a multiple of 32, where there is no run")
    parser.add_argument("--seed", type=int, default=0, help="of weights")
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 512, 2048], help="tokens before")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="rows")
    parser.add_argument("--tokens", type=int, default=64, help="tokens that are decoded in each setting")
    parser.add_argument("--afresh", type=int, default=3, help="of them, those that are solved afresh as well")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run the benchmark; 0 when it ran."""
    options = parse(arguments)
    console = prepare(options)
    model, text = trained(options, console)
    settings = []
    for context in options.contexts:
        for batch in options.batches:
            settings.append(setting(model, text, context, batch, options))
            console.print(f"context {context}, batch {batch}: {settings[-1]['over_twin']:.2f} times the twin's speed")
    origin = f"run {options.run}" if options.run is not None else f"trained for {options.steps} steps"
    result = {
        "model": f"width {model.cell.d_model}, {origin}",
        "depth": repr(model.depth),
        "settings": settings,
        "agreement": agreement(model, text, console),
    }
    publish("decode", arguments, options, result, show)
    return 0
