"""Decoding and evaluation beside somebody else's network of as many weights: transformers' GPT-2, eager and compiled.

The model is a run's, or the demo that comes with the package. GPT-2 has its width, vocabulary and heads, and as many
layers as come nearest to its weights; its own stay as they were drawn, for they do not change its time. Both write
after the same text, with a cache, and both read the same rows for a loss. The contenders take turns; seconds
are CPU seconds of the process. Text that is guessed ahead, and text of compiled steps, is compared with the usual one.

    equilibria bench gpt2 [--json] [--run RUN] [--tokens N] [--guesses N …] [--rounds N] [--threads N] [--out FILE]
"""

from __future__ import annotations

import copy
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from benchmarks._harness import options_of, prepare, publish, spread
from equilibria.diagnostics import spectral_radius
from equilibria.errors import UserError
from equilibria.inference.compiling import compile_run
from equilibria.inference.loading import load_run
from equilibria.measuring.spread import ratios
from equilibria.models import LanguageModel
from equilibria.models.sampling import Sampling

ROWS, LENGTH, PROMPT, POSITIONS = 16, 64, 64, 512


def beside(model: LanguageModel) -> Any:
    """A GPT-2 of about the model's weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    width, vocabulary = model.cell.d_model, model.embedding.vocabulary_size
    wanted = sum(parameter.numel() for parameter in model.parameters())
    layers = max(1, round((wanted - (vocabulary + POSITIONS) * width) / (12 * width**2 + 13 * width)))
    sizes: dict[str, Any] = {"vocab_size": vocabulary, "n_positions": POSITIONS, "n_embd": width, "n_layer": layers}
    config = GPT2Config(**sizes, n_head=getattr(model.cell, "heads", 4), bos_token_id=0, eos_token_id=None)
    return GPT2LMHeadModel(config).eval()


def sampled(model: LanguageModel, length: int, rows: int) -> Tensor:
    """Text in the model's own manner, `(rows, length)`."""
    return model.generate(torch.arange(1, rows + 1).unsqueeze(1), length - 1, temperature=0.8, seed=0)


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of the process."""
    start = time.process_time()
    work()
    return time.process_time() - start


@torch.no_grad()
def measure(options: Namespace, console: Console) -> dict[str, Any]:
    """Seconds of all contenders, and their ratios to GPT-2's."""
    loaded = load_run(options.run or "demo")
    model = loaded.model
    if not isinstance(model, LanguageModel):
        raise UserError(f"{options.run} is a baseline's run, which does not solve; name another with --run")
    other = beside(model)
    rows_BL = sampled(model, LENGTH, ROWS)
    prompt_1L = sampled(model, PROMPT, 1)

    compile_run(loaded)
    compiled_token, model.compiled_token = model.compiled_token, None
    other_compiled = copy.deepcopy(other)
    other_compiled.forward = torch.compile(other_compiled.forward, dynamic=False)

    def ours(guesses: int = 0, compiled: bool = False) -> Tensor:
        model.compiled_token = compiled_token if compiled else None
        temperature = options.temperature
        return model.generate(prompt_1L, options.tokens, temperature, seed=1, window=1024, guesses=guesses)

    def theirs(network: Any, **cache: str) -> Tensor:
        lengths = {"max_new_tokens": options.tokens, "min_new_tokens": options.tokens}
        draw = {"do_sample": True, "temperature": options.temperature, "top_k": 0} if options.temperature else {}
        return network.generate(prompt_1L, pad_token_id=0, **lengths, **draw, **cache)

    def loss_of(logits_BLV: Tensor) -> Tensor:
        return F.cross_entropy(logits_BLV[:, :-1].flatten(0, 1), rows_BL[:, 1:].flatten())

    writing: dict[str, Callable[[], object]] = {
        "GPT-2": lambda: theirs(other),
        "GPT-2, compiled": lambda: theirs(other_compiled, cache_implementation="static"),
        "ours": ours,
        "ours, compiled": lambda: ours(compiled=True),
    }
    writing |= {f"ours, {count} guesses": lambda count=count: ours(count) for count in options.guesses}
    reading = {"GPT-2": lambda: loss_of(other(rows_BL).logits), "ours": lambda: loss_of(model(rows_BL).logits)}
    tasks = {"writing": (writing, options.tokens), "reading": (reading, rows_BL.numel())}
    found: dict[str, Any] = {}
    for task, (contenders, count) in tasks.items():
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for number in range(options.rounds + 1):
            for name, work in contenders.items():
                spent = seconds(work) / count
                if number:  # the first round warms up
                    times[name].append(spent)
            console.print(f"{task}: round {number} of {options.rounds}")
        found[task] = {
            name: {
                "seconds_per_token": spread(spent),
                **{
                    key: asdict(ratios(spent, times[base]))
                    for key, base in (("over_gpt2", "GPT-2"), ("over_gpt2_compiled", "GPT-2, compiled"))
                    if base in times
                },
            }
            for name, spent in times.items()
        }
    drawn = islice(model.stream(prompt_1L, Sampling(options.temperature), 1, window=1024), options.tokens)
    spent = [float(one.solved.evaluations_B) for one in drawn if one.solved is not None]
    found["writing"]["ours"]["evaluations"] = spread(spent)
    f, solution = model.solve(rows_BL)
    found["reading"]["ours"] |= {
        "evaluations": spread(solution.group_evaluations.flatten().tolist()) | {"most": solution.evaluations},
        "spectral_radius": spectral_radius(f, solution.value, tokens=[LENGTH // 2, LENGTH - 1]),
    }
    usual = ours()
    for name in writing:
        if name.startswith("ours, "):
            same = int((cast(Tensor, writing[name]()) == usual)[0, PROMPT:].sum())
            found["writing"][name]["tokens_as_without"] = same
    weights = [sum(parameter.numel() for parameter in one.parameters()) for one in (model, other)]
    layers = other.config.n_layer
    return {"weights": weights, "layers_of_gpt2": layers, "tokens": options.tokens, "figures": found}


def show(result: dict[str, Any], console: Console) -> None:
    """The table a person reads."""
    ours, theirs = result["weights"]
    table = Table("", "ms per token", "GPT-2", "compiled", title=f"{ours:,} weights, GPT-2 {theirs:,}")
    for task, rows in result["figures"].items():
        for name, figures in rows.items():
            time_ = figures["seconds_per_token"]
            over = [figures.get(key) for key in ("over_gpt2", "over_gpt2_compiled")]
            shown = ("–" if ratio is None else f"{ratio['median']:.2f}" for ratio in over)
            table.add_row(f"{task}, {name}", f"{1e3 * time_['median']:.3f}", *shown)
    console.print(table)


def main(arguments: list[str]) -> int:
    """Run the benchmark; 0 when it ran."""
    parser = options_of("gpt2", __doc__)
    parser.add_argument("--run", type=Path, help="the folder of a trained run; the demo that is shipped when left out")
    parser.add_argument("--tokens", type=int, default=128, help="tokens to write")
    parser.add_argument("--temperature", type=float, default=0.0, help="of what is written")
    parser.add_argument("--guesses", type=int, nargs="*", default=[3, 6], help="tokens to guess ahead")
    parser.add_argument("--rounds", type=int, default=7, help="how often each contender works")
    options = parser.parse_args(arguments)
    publish("gpt2", arguments, options, measure(options, prepare(options)), show)
    return 0
