"""The stock cache of transformers holds keys and values of one cell, and can be treated as that of any model."""

from functools import partial
from typing import Any

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from equilibria.cells import ContractiveCell
from equilibria.depths import Equilibrium
from equilibria.interop.hugging_face.cache import read_on
from equilibria.models import LanguageModel
from wrapped_kinds import CACHED, VOCABULARY, model, text


@torch.no_grad()
@pytest.mark.parametrize("kind", CACHED)
def test_parts_of_a_text_are_read_as_the_whole(kind: str) -> None:
    one, tokens = model(kind), text(2, 12)
    whole = one(tokens, use_cache=False).logits
    past, parts = DynamicCache(config=one.config), []
    for part in tokens.split((5, 1, 4, 2), dim=1):
        output = one(part, past_key_values=past)
        assert output.past_key_values is past
        parts.append(output.logits)
    assert past.get_seq_length() == 12
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_one_layer_whatever_the_depth() -> None:
    past = model("contractive")(text(2, 12)).past_key_values
    assert isinstance(past, DynamicCache)
    (layer,) = past.layers
    assert isinstance(layer, DynamicLayer)
    assert layer.keys is not None
    assert layer.keys.shape == (2, 2, 12, 8)  # batch, heads, tokens, features of a head


@torch.no_grad()
@pytest.mark.parametrize("kind", ["contractive", "trellis"])
def test_cropping_repeating_and_reordering(kind: str) -> None:
    one, tokens = model(kind), text(2, 12)
    past = one(tokens).past_key_values
    past.crop(-4)
    torch.testing.assert_close(one(tokens[:, 8:], past_key_values=past).logits, one(tokens).logits[:, 8:])
    past.crop(-4)
    past.batch_repeat_interleave(2)
    past.reorder_cache(torch.tensor([3, 0, 0, 2]))
    again = one(tokens[[1, 0, 0, 1], 8:], past_key_values=past).logits
    torch.testing.assert_close(again, one(tokens).logits[[1, 0, 0, 1], 8:])


@torch.no_grad()
def test_a_step_that_fails_leaves_the_cache_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = model("contractive"), model("contractive", cell=partial(ContractiveCell, d_model=16, heads=4))
    tokens = text(2, 13)
    past, next_token = one(tokens[:, :12]).past_key_values, tokens[:, 12:]
    attempts: list[tuple[Any, torch.Tensor, str]] = [
        (one, torch.full((2, 1), VOCABULARY), "outside the vocabulary"),
        (one, text(3, 1), "the cache has batch size 2, the tokens have 3"),
        (other, next_token, "a cache of this model keeps"),
        (model("contractive").train(), next_token, "evaluation mode"),
    ]
    for reader, token, problem in attempts:
        with pytest.raises(ValueError, match=problem):
            reader(token, past_key_values=past)
        assert past.get_seq_length() == 12

    def interrupted(*given: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Equilibrium, "reach", interrupted)
        with pytest.raises(KeyboardInterrupt):
            one(next_token, past_key_values=past)
    expected = one(next_token, past_key_values=one(tokens[:, :12]).past_key_values).logits
    assert torch.equal(one(next_token, past_key_values=past).logits, expected)


@torch.no_grad()
def test_a_failure_between_layers_leaves_all_of_them_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    one, tokens = model("around"), text(2, 13)
    past, update = one(tokens[:, :12]).past_key_values, DynamicLayer.update
    layers = iter(range(3))

    def failing(layer: DynamicLayer, *given: torch.Tensor) -> object:
        if next(layers) == 1:
            raise MemoryError
        return update(layer, *given)

    monkeypatch.setattr(DynamicLayer, "update", failing)
    with pytest.raises(MemoryError):
        one(tokens[:, 12:], past_key_values=past)
    assert [past.get_seq_length(number) for number in range(3)] == [12] * 3


@torch.no_grad()
def test_the_window_bounds_what_is_seen() -> None:
    one, tokens = model("contractive"), text(2, 13)
    assert isinstance(one.model, LanguageModel)
    past = DynamicCache(config=one.config)
    read_on(one.model, tokens[:, :12], past, limit=4)
    layer = past.layers[0]
    assert isinstance(layer, DynamicLayer)
    assert layer.keys is not None
    layer.keys[:, :, :8] = 1e3  # nobody looks there
    bounded = read_on(one.model, tokens[:, 12:], past, limit=4).logits_BV
    cache = one.model.prefill(tokens[:, :12], limit=4).cache
    # A longer cache lies elsewhere in memory: other kernels may round its products.
    torch.testing.assert_close(bounded, one.model.decode(tokens[:, 12:], cache).logits_BV)
