"""GPT-2 (Radford et al. 2019) from its description, as `save_pretrained` writes it: an oracle for the importer."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

CONFIG = {
    "model_type": "gpt2",
    "n_embd": 12,
    "n_layer": 3,
    "n_head": 3,
    "n_inner": 20,
    "n_positions": 16,
    "vocab_size": 30,
    "activation_function": "gelu",
    "layer_norm_epsilon": 1e-5,
}

Weights = dict[str, Tensor]


def random_weights(seed: int = 0, attention_biases: bool = False) -> Weights:
    """A decoder's weights, by its names."""
    generator = torch.Generator().manual_seed(seed)
    width, inner = CONFIG["n_embd"], CONFIG["n_inner"]

    def draw(*shape: int, scale: float = 0.3) -> Tensor:
        return torch.randn(shape, generator=generator) * scale

    weights = {"wte.weight": draw(CONFIG["vocab_size"], width), "wpe.weight": draw(CONFIG["n_positions"], width)}
    norms = ["ln_f"]
    for i in range(CONFIG["n_layer"]):
        norms += [f"h.{i}.ln_1", f"h.{i}.ln_2"]
        for name, inputs, outputs in (
            ("attn.c_attn", width, 3 * width),
            ("attn.c_proj", width, width),
            ("mlp.c_fc", width, inner),
            ("mlp.c_proj", inner, width),
        ):
            weights[f"h.{i}.{name}.weight"] = draw(inputs, outputs)
            scale = float(name.startswith("mlp") or attention_biases)
            weights[f"h.{i}.{name}.bias"] = draw(outputs, scale=0.3 * scale)
    for name in norms:
        weights |= {f"{name}.weight": 1 + draw(width), f"{name}.bias": draw(width)}
    return weights


def save(folder: Path, weights: Weights, **config: Any) -> Path:
    """A folder with the configuration and the weights, named as those of a model with an output layer."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | config), encoding="utf-8")
    named = {name if name.startswith("lm_head") else f"transformer.{name}": t for name, t in weights.items()}
    save_file({name: tensor.contiguous() for name, tensor in named.items()}, folder / "model.safetensors")
    return folder


def mean_block(weights: Weights) -> Weights:
    """The mean of the blocks, as block 0."""
    count = CONFIG["n_layer"]
    names = [name.removeprefix("h.0.") for name in weights if name.startswith("h.0.")]
    return {f"h.0.{name}": sum(weights[f"h.{i}.{name}"] for i in range(count)) / count for name in names}


def one_block_logits(weights: Weights, block: int, tokens: Tensor) -> Tensor:
    """The decoder with one of its blocks and without learned positions: `(B, L) → (B, L, V)`."""
    width, size = CONFIG["n_embd"], CONFIG["n_embd"] // CONFIG["n_head"]

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"h.{block}.{name}.weight"] + weights[f"h.{block}.{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return (
            centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weights[f"{name}.weight"]
            + (weights[f"{name}.bias"])
        )

    h = weights["wte.weight"][tokens]
    parts = linear("attn.c_attn", norm(f"h.{block}.ln_1", h))
    mixed = []
    for head in range(CONFIG["n_head"]):
        q, k, v = (parts[..., i * width + head * size :][..., :size] for i in range(3))
        scores = q @ k.mT / math.sqrt(size)
        later = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).triu(1)
        mixed.append(scores.masked_fill(later, -math.inf).softmax(-1) @ v)
    h = h + linear("attn.c_proj", torch.cat(mixed, dim=-1))
    hidden = linear("mlp.c_fc", norm(f"h.{block}.ln_2", h))
    h = h + linear("mlp.c_proj", hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))))
    return norm("ln_f", h) @ weights.get("lm_head.weight", weights["wte.weight"]).mT
