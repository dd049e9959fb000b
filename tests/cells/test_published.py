"""The published cells with the weights of the peer's language models give the losses that the peer's own code gave.

The checkpoints are random weights in the layouts of TorchDEQ's `deq-seq` and `deq-lm`, with a text of three segments
and its mean loss in each.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from equilibria.cells import Memory, PostNormCell, ThreeBlockCell

INTEROP = Path(__file__).parents[3] / "shared" / "data" / "interop"

LAYERS = {
    "attention.queries_keys_values": "qkv_net",
    "attention.distances": "r_net",
    "attention.output": "o_net",
    "feed_forward.expand": "ff1_net",
    "feed_forward.contract": "ff2_net",
}
NORMS = {"attention_norm": "ln1", "attention.output_norm": "ln2", "feed_forward_norm": "ln"}

Weights = dict[str, Tensor]


def block_weights(theirs: Weights, attention: str, feed_forward: str) -> Weights:
    """The weights of one block under our names."""
    ours = {
        f"attention.{a}_bias": theirs[f"{attention}.{b}_bias"] for a, b in (("content", "r_w"), ("distance", "r_r"))
    }
    for name, other in (LAYERS | NORMS).items():
        prefix = f"{feed_forward if name.startswith('feed') else attention}.{other}"
        for suffix, part in (("weight_g", "original0"), ("weight_v", "original1")):
            if f"{prefix}.{suffix}" in theirs:  # some are convolutions of kernel 1
                ours[f"{name}.parametrizations.weight.{part}"] = theirs[f"{prefix}.{suffix}"].flatten(1)
        ours |= {f"{name}.{part}": theirs[key] for part in ("weight", "bias") if (key := f"{prefix}.{part}") in theirs}
    return ours


def published(theirs: Weights, sizes: dict[str, Any]) -> tuple[PostNormCell | ThreeBlockCell, int]:
    """The cell, and how often it was applied."""
    if sizes["kind"] == "torchdeq/deq-seq":
        cell, injection, applications = PostNormCell, "inject_conv", 200
        prefixes = [("func.dec_attn", "func.pos_ff")]
    else:
        cell, injection, applications = ThreeBlockCell, "injection", sizes["iterations"]
        prefixes = [(f"func.dec_attn.{i}", f"func.pos_ff.{i}") for i in range(3)]
    built = cell(sizes["d_model"], sizes["heads"], sizes["d_inner"], normalisation="weight")
    weights = {"inject.weight": theirs[f"{injection}.weight"].flatten(1), "inject.bias": theirs[f"{injection}.bias"]}
    for index, prefix in enumerate(prefixes):
        weights |= {f"blocks.{index}.{name}": value for name, value in block_weights(theirs, *prefix).items()}
    built.load_state_dict(weights)
    return built, applications


def embedded(theirs: Weights, tokens: Tensor, width: int) -> Tensor:
    """Adaptive input embedding: three clusters of 100 tokens, each projected to the width."""
    tables = [theirs[f"word_emb.emb_layers.{i}.weight"] @ theirs[f"word_emb.emb_projs.{i}.weight"].mT for i in range(3)]
    return torch.cat(tables)[tokens] * width**0.5


def mean_loss(theirs: Weights, hidden: Tensor, targets: Tensor) -> float:
    """Adaptive softmax over the same clusters; the peer counts the head's clusters from the end."""

    def logits(i: int, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(hidden @ theirs[f"crit.out_projs.{i}.weight"], weight, bias)

    layers = [[theirs[f"crit.out_layers.{i}.{part}"] for part in ("weight", "bias")] for i in range(3)]
    clusters = theirs["crit.cluster_weight"], theirs["crit.cluster_bias"]
    head = logits(0, *(torch.cat(pair) for pair in zip(layers[0], clusters, strict=True))).log_softmax(-1)
    tails = [head[..., [-i]] + logits(i, *layers[i]).log_softmax(-1) for i in (1, 2)]
    log_probabilities = torch.cat([head[..., :100], *tails], dim=-1)
    return F.nll_loss(log_probabilities.flatten(0, 1), targets.flatten()).item()


@pytest.mark.skipif(not INTEROP.is_dir(), reason="../shared/data/interop is absent")
@pytest.mark.parametrize("name", ["deq-seq", "deq-lm"])
@torch.no_grad()
def test_the_losses_of_the_published_code(name):
    theirs: Weights = torch.load(INTEROP / f"torchdeq-{name}.pth", weights_only=True)
    expected = json.loads((INTEROP / f"torchdeq-{name}.json").read_text(encoding="utf-8"))
    cell, applications = published(theirs, expected["model"])
    tokens, length = torch.tensor(expected["tokens"]), expected["model"]["segment_length"]
    memory = None
    for index, segment in enumerate(expected["segments"]):
        part = slice(index * length, (index + 1) * length)
        inputs = embedded(theirs, tokens[:, part], cell.d_model)
        context, z = cell.context(inputs, memory), torch.zeros_like(inputs)
        for _ in range(applications):
            z = cell(z, context)
        memory = Memory.join(memory, cell.remember(z, context), expected["model"]["memory_length"])
        assert memory is not None
        assert mean_loss(theirs, z, tokens[:, 1:][:, part]) == pytest.approx(segment["mean_nll"], abs=2e-6)
        assert memory.states[0].norm().item() == pytest.approx(segment["z_norm"], rel=1e-5)
