"""The published DEQ transformers from their papers' formulas: a query, a key and a token at a time, in float64.

An oracle for the importers: it knows the names and layouts of the checkpoints and none of this package.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

Weights = dict[str, Tensor]
LAYERS = ("qkv_net", "r_net", "o_net", "ff1_net", "ff2_net")


@dataclass(frozen=True)
class Published:
    """A published model; `cutoffs` and `div_val` as its code takes them, `iterations` None for as many as it takes."""

    kind: str
    vocabulary_size: int = 40
    d_model: int = 12
    d_embed: int = 12
    heads: int = 3
    inner: int = 10
    blocks: int = 2
    cutoffs: tuple[int, ...] = (10, 22)
    div_val: int = 2
    pre_norm: bool = False
    affine: bool = False
    memory_length: int = 5
    window: int = 1000
    iterations: int | None = 5

    @property
    def edges(self) -> tuple[int, ...]:
        return (0, *self.cutoffs, self.vocabulary_size)

    @property
    def one_table(self) -> bool:
        """Whether all clusters are rows of one table."""
        return self.div_val == 1

    @property
    def projected(self) -> bool:
        return not self.one_table or self.d_embed != self.d_model

    @property
    def prefixes(self) -> list[tuple[str, str]]:
        """Attention and feed-forward network of each block."""
        if self.kind == "torchdeq-seq":
            return [("func.dec_attn", "func.pos_ff")]
        return [(f"func.dec_attn.{i}", f"func.pos_ff.{i}") for i in range(self.blocks)]


def random_weights(model: Published, seed: int = 0, norm: str = "hooks", tied_projections: bool = True) -> Weights:
    """A state dictionary as the published code saves it.

    Args:
        model: sizes and layout.
        seed: of the numbers.
        norm: `"hooks"` for `weight_g` and `weight_v`, `"parametrizations"`, or `"none"`.
        tied_projections: whether all clusters but the first share the projections of the embedding.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 0.3) -> Tensor:
        return torch.randn(shape, generator=generator) * scale

    weights: Weights = {}
    convolution = model.kind == "torchdeq-seq"

    def layer(name: str, rows: int, columns: int, kernel: bool, bias: bool) -> None:
        trailing = (1,) if kernel else ()
        names = {"hooks": ("weight_g", "weight_v"), "none": ("weight", "weight")}.get(
            norm, ("parametrizations.weight.original0", "parametrizations.weight.original1")
        )
        if norm != "none":
            weights[f"{name}.{names[0]}"] = (0.4 + 0.3 * torch.rand(rows, 1, generator=generator)).reshape(
                rows, 1, *trailing
            )
        weights[f"{name}.{names[1]}"] = draw(rows, columns, *trailing, scale=0.15)
        if bias:
            weights[f"{name}.bias"] = draw(rows)

    width, embed, clusters = model.d_model, model.d_embed, len(model.cutoffs) + 1
    spans = list(zip(model.edges, model.edges[1:], strict=False))
    tables = [(model.vocabulary_size, embed)] if model.one_table else []
    tables = tables or [(right - left, embed // model.div_val**i) for i, (left, right) in enumerate(spans)]
    for i, shape in enumerate(tables):
        weights[f"word_emb.emb_layers.{i}.weight"] = draw(*shape)
        weights[f"crit.out_layers.{i}.weight"] = weights[f"word_emb.emb_layers.{i}.weight"]
        weights[f"crit.out_layers.{i}.bias"] = draw(shape[0])
        if model.projected:
            weights[f"word_emb.emb_projs.{i}.weight"] = draw(width, shape[1])
    for i in range(clusters if model.projected else 0):
        source = weights[f"word_emb.emb_projs.{0 if model.one_table else i}.weight"]
        own = i == 0 or not tied_projections
        weights[f"crit.out_projs.{i}.weight"] = draw(*source.shape) if own else source
    if clusters > 1:
        weights |= {"crit.cluster_weight": draw(clusters - 1, embed), "crit.cluster_bias": draw(clusters - 1)}
    injection = "inject_conv" if convolution else "injection"
    weights[f"{injection}.weight"] = draw(3 * width, width, *((1,) if convolution else ()), scale=0.2)
    weights[f"{injection}.bias"] = draw(3 * width)
    weights["pos_emb.inv_freq"] = 1 / (10000 ** (torch.arange(0.0, width, 2.0) / width))
    for attention, feed_forward in model.prefixes:
        layer(f"{attention}.qkv_net", 3 * width, width, convolution, bias=False)
        layer(f"{attention}.r_net", width, width, convolution, bias=False)
        layer(f"{attention}.o_net", width, width, convolution, bias=True)
        layer(f"{feed_forward}.ff1_net", model.inner, width, False, bias=True)
        layer(f"{feed_forward}.ff2_net", width, model.inner, False, bias=True)
        for name in ("r_w_bias", "r_r_bias"):
            weights[f"{attention}.{name}"] = draw(model.heads, width // model.heads)
        norms = [f"{attention}.ln1", f"{attention}.ln2", f"{feed_forward}.ln"]
        if convolution:
            norms = [f"{attention}.ln", f"{feed_forward}.ln"] if model.affine else []
        for name in norms:
            weights |= {f"{name}.weight": 1 + draw(width, scale=0.1), f"{name}.bias": draw(width, scale=0.1)}
    return weights


def mean_losses(model: Published, weights: Weights, segments: list[tuple[Tensor, Tensor]]) -> list[float]:
    """The mean negative log-likelihood of each segment of inputs and targets `(B, L)`, memory carried, in nats."""
    exact = {name: tensor.double().flatten(2).squeeze(-1) for name, tensor in weights.items() if tensor.dim() > 2}
    exact = {name: tensor.double() for name, tensor in weights.items()} | exact
    for layer in (f"{prefix}.{name}" for pair in model.prefixes for prefix in pair for name in LAYERS):
        if any(name.startswith(layer) for name in exact):
            exact[f"{layer}.weight"] = effective(exact, layer)
    batch = segments[0][0].shape[0]
    losses = torch.zeros(batch, len(segments), dtype=torch.float64)
    for row in range(batch):
        memory: list[tuple[Tensor, Tensor]] = []
        for number, (inputs, targets) in enumerate(segments):
            injected = [inject(model, exact, int(token)) for token in inputs[row]]
            states = solve(model, exact, memory, injected)
            pairs = list(zip(states, injected, strict=True))
            memory = (memory + pairs)[max(0, len(memory) + len(pairs) - model.memory_length) :]
            scores = [log_probability(model, exact, z, int(t)) for z, t in zip(states, targets[row], strict=True)]
            losses[row, number] = -torch.stack(scores).mean()
    return losses.mean(0).tolist()


def inject(model: Published, weights: Weights, token: int) -> Tensor:
    """What is added to a token's queries, keys and values."""
    cluster = max(i for i, first in enumerate(model.edges[:-1]) if token >= first)
    place = 0 if model.one_table else cluster
    row = weights[f"word_emb.emb_layers.{place}.weight"][token if model.one_table else token - model.edges[cluster]]
    projection = weights.get(f"word_emb.emb_projs.{place}.weight")
    features = (row if projection is None else projection @ row) * math.sqrt(model.d_model)
    name = "injection" if "injection.weight" in weights else "inject_conv"
    return weights[f"{name}.weight"] @ features + weights.get(f"{name}.bias", 0.0)


def solve(
    model: Published, weights: Weights, memory: list[tuple[Tensor, Tensor]], injected: list[Tensor]
) -> list[Tensor]:
    """The states of a segment: after a number of applications from zero, or their limit."""
    states = [torch.zeros(model.d_model, dtype=torch.float64) for _ in injected]
    change = math.inf
    for _ in range(model.iterations or 1000):
        before = torch.stack(states)
        for attention, feed_forward in model.prefixes:
            states = block(model, weights, attention, feed_forward, memory, states, injected)
        change = float((torch.stack(states) - before).norm() / torch.stack(states).norm())
        if model.iterations is None and change < 1e-9:
            break
    assert model.iterations is not None or change < 1e-9, "the oracle has not converged"
    return states


def block(
    model: Published,
    weights: Weights,
    attention: str,
    feed_forward: str,
    memory: list[tuple[Tensor, Tensor]],
    states: list[Tensor],
    injected: list[Tensor],
) -> list[Tensor]:
    """One block, position by position."""
    lm = model.kind == "torchdeq-lm"
    pre = lm or model.pre_norm
    seen = [z for z, _ in memory] + states
    added = [u for _, u in memory] + injected
    first = f"{attention}.ln1" if lm else f"{attention}.ln"
    if pre:
        seen = [layer_norm(weights, first, z) for z in seen]
    projected = [weights[f"{attention}.qkv_net.weight"] @ h + u for h, u in zip(seen, added, strict=True)]
    heads = [split_heads(model, features) for features in projected]
    distances = [weights[f"{attention}.r_net.weight"] @ sinusoids(model.d_model, d) for d in range(len(seen))]
    outputs = []
    for i, z in enumerate(states):
        mixed = attend(model, weights, attention, heads, distances, len(memory) + i)
        if lm:
            mixed = layer_norm(weights, f"{attention}.ln2", mixed)
        a = z + weights[f"{attention}.o_net.weight"] @ mixed + weights[f"{attention}.o_net.bias"]
        if not pre:
            a = layer_norm(weights, first, a)
        fed = layer_norm(weights, f"{feed_forward}.ln", a) if pre else a
        hidden = weights[f"{feed_forward}.ff1_net.weight"] @ fed + weights[f"{feed_forward}.ff1_net.bias"]
        out = a + weights[f"{feed_forward}.ff2_net.weight"] @ hidden.clamp(min=0)
        out = out + weights[f"{feed_forward}.ff2_net.bias"]
        outputs.append(out if pre else layer_norm(weights, f"{feed_forward}.ln", out))
    return outputs


def split_heads(model: Published, features: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Query, key and value of each head: side by side per head in deq-lm, three blocks of all heads in deq-seq."""
    size, heads = model.d_model // model.heads, []
    for h in range(model.heads):
        if model.kind == "torchdeq-lm":
            starts = [3 * h * size + part * size for part in range(3)]
        else:
            starts = [part * model.d_model + h * size for part in range(3)]
        q, k, v = (features[start : start + size] for start in starts)
        heads.append((q, k, v))
    return heads


def attend(
    model: Published, weights: Weights, attention: str, heads: list, distances: list[Tensor], position: int
) -> Tensor:
    """The mixed values of all heads at a position of memory and segment."""
    size, mixed = model.d_model // model.heads, []
    content, distance = weights[f"{attention}.r_w_bias"], weights[f"{attention}.r_r_bias"]
    visible = range(max(0, position - model.window + 1), position + 1)
    for h in range(model.heads):
        query, scores = heads[position][h][0], []
        for key in visible:
            r = distances[position - key][h * size : (h + 1) * size]
            scores.append(((query + content[h]) @ heads[key][h][1] + (query + distance[h]) @ r) / math.sqrt(size))
        shares = torch.stack(scores).softmax(0)
        mixed.append(sum(share * heads[key][h][2] for share, key in zip(shares, visible, strict=True)))
    return torch.cat(mixed)


def sinusoids(features: int, distance: int) -> Tensor:
    """Sines, then cosines, of a distance at falling frequencies."""
    angles = torch.tensor([distance / 10000 ** (2 * i / features) for i in range(features // 2)], dtype=torch.float64)
    return torch.cat([angles.sin(), angles.cos()])


def effective(weights: Weights, layer: str) -> Tensor:
    """The matrix of a layer, row by row `g · v / ‖v‖` where it is normalised."""
    for norm, direction in (
        ("weight_g", "weight_v"),
        ("parametrizations.weight.original0", "parametrizations.weight.original1"),
    ):
        if f"{layer}.{norm}" in weights:
            g, v = weights[f"{layer}.{norm}"].flatten(), weights[f"{layer}.{direction}"]
            return torch.stack([size * row / row.norm() for size, row in zip(g, v, strict=True)])
    return weights[f"{layer}.weight"]


def layer_norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    """Centred and scaled; with gain and bias where there are some."""
    centred = x - x.mean()
    normed = centred / torch.sqrt((centred**2).mean() + 1e-5)
    return normed * weights.get(f"{name}.weight", 1.0) + weights.get(f"{name}.bias", 0.0)


def log_probability(model: Published, weights: Weights, z: Tensor, token: int) -> Tensor:
    """Of a token after a state: a cluster of the head's, counted from its end, and then the token in it."""
    cluster = max(i for i, first in enumerate(model.edges[:-1]) if token >= first)
    clusters = len(model.cutoffs)

    def scores(i: int) -> Tensor:
        projection = weights.get(f"crit.out_projs.{i}.weight")
        low = z if projection is None else projection.T @ z
        if model.one_table:
            rows = slice(model.edges[i], model.edges[i + 1])
            table, bias = weights["crit.out_layers.0.weight"][rows], weights["crit.out_layers.0.bias"][rows]
        else:
            table, bias = weights[f"crit.out_layers.{i}.weight"], weights[f"crit.out_layers.{i}.bias"]
        if i == 0 and clusters:
            table = torch.cat([table, weights["crit.cluster_weight"]])
            bias = torch.cat([bias, weights["crit.cluster_bias"]])
        return (table @ low + bias).log_softmax(0)

    head = scores(0)
    if cluster == 0:
        return head[token]
    return head[-cluster] + scores(cluster)[token - model.edges[cluster]]
