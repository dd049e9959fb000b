"""The stock `DynamicCache` of transformers as the cache of a model.

A layer of it holds two tensors of a token, keys and values, as a cell does: an equilibrium of one block has one layer,
and an explicit depth one for each block of each application. What has no heads (the states and inputs of a trellis
cell) is stored with one. A step lets the cache append empty slots, and the cell's evaluations write there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache as TransformersCache
from transformers.cache_utils import DynamicLayer

from equilibria.cells import Cache
from equilibria.depths import Depth
from equilibria.models import LanguageModel, TokenModel
from equilibria.models.decoding import Step


def cache_layers(model: TokenModel) -> int | None:
    """Layers of a `DynamicCache` that a model fills; None if its past is not keys and values of tokens."""
    if not isinstance(model, LanguageModel) or not model.decodes():
        return None
    return len(model.new_cache().entries) // 2


def head_sizes(model: TokenModel) -> tuple[int, int, int]:
    """The heads of a model's cell, those that a cache keeps, and their features; one head where a cell has none."""
    if cache_layers(model) is None:
        return 1, 1, model.embedding.d_model
    assert isinstance(model, LanguageModel)
    *kept, features = model.new_cache().entries[0]
    heads = kept[0] if kept else 1
    return getattr(model.cell, "heads", heads), heads, features


def read_on(
    model: LanguageModel,
    tokens_BL: Tensor,
    past: TransformersCache,
    padding_B: Tensor | None = None,
    limit: int | None = None,
    depth: Depth | None = None,
) -> Step:
    """Reads tokens `(B, L ≥ 1)` into a cache, after those in it, without gradients.

    Args:
        model: in evaluation mode.
        tokens_BL: token ids.
        past: changed in place; as it was where the call fails.
        padding_B: how many tokens at the left of each row, in the cache and these, are padding.
        limit: tokens of the cache that are seen at most; None for all.
        depth: None for the model's own.

    Raises:
        ValueError: the cache is of another kind, another model's or of another batch size, the model is in training
            mode, or a token is outside the vocabulary.
    """
    check_cache(past, model, depth)
    model.check(tokens_BL)
    length = past.get_seq_length()
    if not length:
        step = model.prefill(tokens_BL, padding_B, depth=depth)
        assert isinstance(step.cache, Cache)
        contents = [t if t.dim() == 4 else t.unsqueeze(1) for t in step.cache.contents]
        for layer, (keys, values) in enumerate(zip(contents[::2], contents[1::2], strict=True)):
            past.update(keys, values, layer)
        return step
    cache = model.new_cache(limit, depth=depth)
    try:
        cache.adopt(_with_room(past, cache.entries, tokens_BL.shape[1]), length, padding_B)
        return model.decode(tokens_BL, cache, depth=depth)
    except BaseException:  # also one that interrupts a solve
        for layer, keys, values in _filled(past):  # `crop` would cut as much from those that have not grown
            layer.keys, layer.values = keys[..., :length, :], values[..., :length, :]
        raise


@torch.no_grad()
def _with_room(past: TransformersCache, entries: Sequence[tuple[int, ...]], length: int) -> list[Tensor]:
    """The cache's own tensors, grown by `length` slots, laid out as a model's."""
    tensors: list[Tensor] = []
    for number, (_, *kept) in enumerate(_filled(past)):
        keys, values = (t.new_zeros(*t.shape[:2], length, t.shape[3]) for t in kept)
        tensors.extend(past.update(keys, values, number))
    return [t if len(entry) == 2 else t.squeeze(1) for t, entry in zip(tensors, entries, strict=True)]


def _filled(past: TransformersCache) -> Iterator[tuple[DynamicLayer, Tensor, Tensor]]:
    """Each layer with its keys and values."""
    for layer in past.layers:
        assert isinstance(layer, DynamicLayer)
        assert layer.keys is not None
        assert layer.values is not None
        yield layer, layer.keys, layer.values


def check_cache(past: TransformersCache, model: TokenModel, depth: Depth | None = None) -> None:
    """Raises a ValueError for a cache that is of another kind or another model's."""
    if cache_layers(model) is None:
        raise ValueError(
            f"a {type(model).__name__} of this kind has no keys and values of tokens to keep; omit past_key_values"
        )
    stock = isinstance(past, DynamicCache) and not past.offloading
    if not stock or any(type(layer) is not DynamicLayer for layer in past.layers):
        raise ValueError(
            f"this model reads into a DynamicCache that keeps every token and stays on the device, found {past!r:.80}; "
            f"omit past_key_values and cache_implementation"
        )
    assert isinstance(model, LanguageModel)
    layers = len(model.new_cache(depth=depth).entries) // 2
    if len(past.layers) not in (0, layers):
        raise ValueError(f"this model's cache has {layers} layers, found {len(past.layers)}: another model's cache")
