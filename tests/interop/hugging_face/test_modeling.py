"""Saving, loading, losses and generation: what transformers makes of our models is what we make of them."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, DynamicCache, StaticCache

import equilibria
from equilibria.configuration import table_of
from equilibria.configuration.building import build_model
from equilibria.data import byte_tokenizer
from equilibria.depths import Equilibrium
from equilibria.errors import UserError
from equilibria.gradients import Gradient, Guarded, Implicit, Phantom, Reversible, Unrolled
from equilibria.interop.hugging_face import EquilibriaConfig, EquilibriaForCausalLM
from equilibria.interop.hugging_face.exporting import stock_tokenizer
from equilibria.models import LanguageModel
from equilibria.models.causal import CausalModel
from equilibria.models.regularisation import Regularisation
from equilibria.nn import UntiedEmbedding
from equilibria.solvers import ConvergenceWarning
from wrapped_kinds import CACHED, KINDS, LAYERS, UNCACHED, VOCABULARY, WINDOW, loaded, model, text


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_comes_back_from_shards(kind: str, tmp_path: Path) -> None:
    one = model(kind)
    torch.manual_seed(0)
    plain = build_model(one.config.whole_recipe(), VOCABULARY)
    # Not to the last bit: the vectors of a spectral norm are computed, by kernels that depend on where memory begins.
    torch.testing.assert_close(one.model.state_dict(), plain.state_dict())
    one.save_pretrained(tmp_path, max_shard_size="4KB")
    shards = list(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    saved = [name for shard in shards for name in load_file(shard)]
    distinct = len(list(one.parameters())) + len(list(one.buffers()))
    assert len(saved) == len(set(saved)) == distinct
    other, report = loaded(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert isinstance(other, EquilibriaForCausalLM)
    assert not other.training
    assert other.config.to_diff_dict() == one.config.to_diff_dict() | {"dtype": "float32"}
    assert len(list(other.parameters())) == len(list(one.parameters()))  # what was shared is shared
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    with torch.no_grad():
        # What is read from a file begins anywhere in memory, and products of it may be rounded otherwise.
        torch.testing.assert_close(other(text()).logits, one(text()).logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            one(text(), use_cache=False).logits, plain.eval()(text()).logits, rtol=1e-4, atol=1e-4
        )


def test_the_head_is_tied_and_can_be_untied() -> None:
    one = model("contractive")
    head, embedding = one.get_output_embeddings(), one.get_input_embeddings()
    assert one.config.tie_word_embeddings
    assert head is not None
    assert head.weight is embedding.weight
    assert one.all_tied_weights_keys == {"lm_head.weight": "backbone.model.embedding.weight"}
    config = EquilibriaConfig.of(KINDS["contractive"], VOCABULARY)
    config.tie_word_embeddings = False
    untied = EquilibriaForCausalLM(config)
    assert untied.all_tied_weights_keys == {}
    assert untied.num_parameters() == one.num_parameters() + VOCABULARY * 16


RESIZED: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied by the configuration": {"tie_word_embeddings": False},
    "untied": {"embedding": partial(UntiedEmbedding)},
}


@pytest.mark.parametrize("kind", RESIZED)
@pytest.mark.filterwarnings("ignore")
def test_the_vocabulary_can_be_resized(kind: str, tmp_path: Path) -> None:
    options = dict(RESIZED[kind])
    tied = options.pop("tie_word_embeddings", True)
    config = EquilibriaConfig.of(replace(KINDS["contractive"], **options), VOCABULARY, WINDOW)
    config.tie_word_embeddings = tied
    one: Any = EquilibriaForCausalLM(config).eval()
    with torch.no_grad():
        before = one(text()).logits
        assert one.resize_token_embeddings(VOCABULARY) is one.get_input_embeddings()
        assert torch.equal(one(text()).logits, before)
        one.resize_token_embeddings(VOCABULARY + 3)
        torch.testing.assert_close(one(text()).logits[..., :VOCABULARY], before)
        added = one(text() * 0 + VOCABULARY + 2).logits
        assert added.shape[-1] == VOCABULARY + 3
        with pytest.raises(ValueError, match=f"outside the vocabulary of {VOCABULARY + 3}"):
            one(text() + VOCABULARY)
        one.save_pretrained(tmp_path)
        other, report = loaded(tmp_path, output_loading_info=True)
        assert not any(report.values())
        torch.testing.assert_close(other(text() * 0 + VOCABULARY + 2).logits, added, rtol=1e-4, atol=1e-4)
    loss = one(text(), labels=text()).loss
    loss.backward()
    assert one.get_input_embeddings().weight.grad.shape[0] == VOCABULARY + 3


def test_what_cannot_be_resized_is_left_as_it_was() -> None:
    one = model("weight-norm")
    before = {name: tensor.clone() for name, tensor in one.state_dict().items()}
    one.resize_token_embeddings(VOCABULARY)
    with pytest.raises(ValueError, match=r"AdaptiveEmbedding .* cannot be resized"):
        one.resize_token_embeddings(VOCABULARY + 3)
    assert one.config.vocab_size == VOCABULARY
    assert all(map(torch.equal, before.values(), one.state_dict().values()))
    with pytest.raises(ValueError, match="is a AdaptiveEmbedding, found a Embedding"):
        one.set_input_embeddings(torch.nn.Embedding(VOCABULARY, 16))


def test_other_types(tmp_path: Path) -> None:
    one = model("contractive")
    one.save_pretrained(tmp_path)
    half = loaded(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    with torch.no_grad(), pytest.warns(ConvergenceWarning):  # bfloat16 has no room for a residual of 1e-6
        torch.testing.assert_close(half(text()).logits.float(), one(text()).logits, rtol=0.1, atol=0.2)


def test_solves_that_fail_are_told_of() -> None:
    one = model("contractive")
    one.depth = replace(one.model.depth, eval_solver=replace(one.model.depth.eval_solver, max_evaluations=1))
    message = "a solve did not converge within the model's budget"
    with pytest.warns(ConvergenceWarning, match=message):
        one(text(), use_cache=False)
    with pytest.warns(ConvergenceWarning, match=message):
        one.generate(text(), max_new_tokens=2, do_sample=False)


LOST = {
    "contractive": ("backbone.model.cell.norm.weight", "backbone.model.embedding.weight"),
    "tied-stack": ("backbone.model.cell.cells.0.norm.weight",),
    "shared-biases": ("backbone.model.cell.cells.0.blocks.0.attention.content_bias",),
    "spectral-norm": (),
}


@pytest.mark.parametrize(("kind", "lost"), [(kind, name) for kind, names in LOST.items() for name in names])
def test_what_a_checkpoint_lacks_is_missed_and_as_in_a_fresh_model(kind: str, lost: str, tmp_path: Path) -> None:
    one = model(kind)
    with torch.no_grad():
        for parameter in one.parameters():
            parameter += 1
    one.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, file, {"format": "pt"})
    torch.manual_seed(5)
    other, report = loaded(tmp_path, output_loading_info=True)
    assert lost in report["missing_keys"]
    assert report["missing_keys"] <= {
        lost,
        *(name for name, first in one.all_tied_weights_keys.items() if first == lost),
    }
    torch.manual_seed(5)
    fresh = EquilibriaForCausalLM(one.config).state_dict()
    for name, parameter in other.named_parameters():
        assert torch.equal(parameter, fresh[name] if name == lost else tensors[name])


def test_the_configuration_is_a_recipe(tmp_path: Path) -> None:
    config = EquilibriaConfig.of(KINDS["weight-norm"], VOCABULARY, WINDOW)
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["recipe"]["depth"]["eval_solver"]["tol"] == 1e-6
    assert table_of(AutoConfig.from_pretrained(tmp_path).whole_recipe().model) == table_of(KINDS["weight-norm"])
    wrong = EquilibriaConfig(recipe={"cell": {"d_modle": 16}})
    with pytest.raises(
        UserError, match=r"config\.json \(recipe\): model\.cell\.d_modle: kind contractive has no such key; .*d_model"
    ):
        EquilibriaForCausalLM(wrong)
    default = EquilibriaForCausalLM(EquilibriaConfig())
    assert (default.config.hidden_size, default.config.num_hidden_layers) == (128, 1)
    translator = {"kind": "equilibria.paper.universal_transformer:UniversalTransformerModel"}
    with pytest.raises(UserError, match="a task with a source and a target"):
        EquilibriaForCausalLM(EquilibriaConfig(recipe={**translator, "d_model": 16, "heads": 2, "inner": 32}))


def test_losses() -> None:
    one, tokens = model("contractive"), text(3, 9)
    labels = tokens.clone()
    labels[0, :4] = labels[2] = -100
    targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    with torch.no_grad():
        output = one(tokens, labels=labels)
        expected = one.model(tokens, targets).loss
        torch.testing.assert_close(output.loss, expected)
        count = int((targets != -100).sum())
        summed = one(tokens, labels=labels, num_items_in_batch=torch.tensor(2 * count)).loss
        torch.testing.assert_close(summed, expected / 2)
        # A product of fewer rows may be rounded otherwise.
        torch.testing.assert_close(one(tokens, logits_to_keep=2).logits, output.logits[:, -2:])
        embedded, final = one(tokens, output_hidden_states=True).hidden_states
        assert torch.equal(embedded, one.get_input_embeddings()(tokens))
        torch.testing.assert_close(one.lm_head(final), output.logits)
        aligned = one(tokens, labels=tokens * 0, shift_labels=targets).loss
        torch.testing.assert_close(aligned, expected)
        assert one(tokens, labels=torch.full_like(tokens, -100), num_items_in_batch=9).loss == 0
        assert isinstance(one(tokens, return_dict=False), tuple)


@pytest.mark.parametrize("items", [None, 16])
def test_the_loss_of_training_has_our_penalties(items: int | None) -> None:
    recipe = {"auxiliary_weight": 0.5, "depth": Equilibrium(states_every=2), "dropout": 0.0}
    one = model("contractive", cell=partial(CACHED["contractive"].cell, dropout=0.0), **recipe).train()
    tokens = text(1, 9)
    output = one.model(tokens, torch.nn.functional.pad(tokens[:, 1:], (0, 1), value=-100))
    assert output.penalty is not None
    share = 1 if items is None else 8 / items
    loss = one(tokens, labels=tokens, num_items_in_batch=items).loss
    torch.testing.assert_close(loss, share * (output.loss + output.penalty))


@pytest.mark.parametrize("kind", ["contractive", "lstm"])
def test_padding_has_no_part_in_training(kind: str) -> None:
    recipe = {} if kind == "lstm" else {"cell": partial(CACHED[kind].cell, dropout=0.0)}
    one, tokens = model(kind, **recipe).train(), text(1, 6)
    alone = one(tokens, labels=tokens)
    alone.loss.backward()
    expected = [parameter.grad.clone() for parameter in one.parameters() if parameter.grad is not None]
    one.zero_grad()
    padded = torch.cat([text(1, 3, seed=1), tokens], dim=1)
    mask = torch.tensor([[0] * 3 + [1] * 6])
    labels = padded.masked_fill(mask == 0, -100)
    output = one(padded, attention_mask=mask, labels=labels, num_items_in_batch=(labels[:, 1:] != -100).sum())
    # A trainer counts the first label, which nothing predicts. A solve of padding too ends a little elsewhere.
    torch.testing.assert_close(output.loss, alone.loss, rtol=1e-3 if kind == "contractive" else 1e-6, atol=0)
    torch.testing.assert_close(output.logits[:, 3:], alone.logits)
    if kind == "lstm":  # the mean residual of an equilibrium's penalty is over padding too
        output.loss.backward()
        found = [parameter.grad for parameter in one.parameters() if parameter.grad is not None]
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_text_is_our_own(kind: str) -> None:
    one = model(kind)
    ours = one.model.generate(text(), 18, temperature=0, window=WINDOW if kind in CACHED else 99)
    assert one.generation_config.use_cache == (kind in CACHED)
    assert torch.equal(one.generate(text(), max_new_tokens=18, do_sample=False), ours)


@pytest.mark.parametrize("kind", KINDS)
def test_left_padded_rows_are_written_as_alone(kind: str) -> None:
    one, tokens = model(kind), text(3, 9)
    mask = torch.ones_like(tokens)
    mask[0, :5] = mask[1, :2] = 0
    for use_cache in {one.generation_config.use_cache, False}:
        options = {"max_new_tokens": 8, "do_sample": False, "use_cache": use_cache}
        together = one.generate(tokens, attention_mask=mask, **options)
        for row, padding in enumerate((5, 2, 0)):
            alone = one.generate(tokens[row : row + 1, padding:], **options)
            assert torch.equal(together[row : row + 1, padding:], alone)


@pytest.mark.parametrize("kind", CACHED)
def test_beams_do_not_depend_on_the_cache(kind: str) -> None:
    one, tokens = model(kind), text(2, 9)
    mask = torch.ones_like(tokens)
    mask[1, :3] = 0
    options = {"attention_mask": mask, "max_new_tokens": 8, "num_beams": 4, "num_return_sequences": 3}
    cached = one.generate(tokens, do_sample=False, **options)
    assert cached.shape == (6, 17)
    assert torch.equal(cached, one.generate(tokens, do_sample=False, use_cache=False, **options))


def test_samples_are_drawn_with_a_seed() -> None:
    one = model("contractive")
    options = {"max_new_tokens": 8, "do_sample": True, "num_return_sequences": 3, "top_k": 20, "temperature": 1.5}
    drawn = []
    for use_cache in (True, False, True):
        torch.manual_seed(7)
        drawn.append(one.generate(text(), use_cache=use_cache, **options))
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])
    assert len({tuple(row) for row in drawn[0][:3].tolist()}) > 1


@torch.no_grad()
def test_what_is_not_understood_is_said() -> None:
    one, lstm, tokens = model("contractive"), model("lstm"), text()
    for mask in (torch.ones(2, 1, 9, 9), torch.ones(2, 4)):
        with pytest.raises(ValueError, match="attention_mask"):
            one(tokens, attention_mask=mask)
    for past in (StaticCache(config=one.config, max_cache_len=20), DynamicCache(config=model("unrolled").config)):
        with pytest.raises(ValueError, match="cache"):
            one(tokens, past_key_values=past)
    with pytest.raises(ValueError, match="omit past_key_values and cache_implementation"):
        one.generate(tokens, max_new_tokens=2, cache_implementation="static")
    with pytest.raises(ValueError, match="omit past_key_values"):
        lstm(tokens, past_key_values=DynamicCache())
    one(tokens, output_attentions=False, token_type_ids=None, return_dict=True)
    for name in ("output_attentions", "head_mask"):
        with pytest.raises(ValueError, match=f"{name}: models of equilibria have no such thing"):
            one(tokens, **{name: True})
    for given in ({}, {"input_ids": tokens, "inputs_embeds": torch.zeros(2, 9, 16)}):
        with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
            one(**given)
    with pytest.raises(ValueError, match="found shape"):
        one(inputs_embeds=torch.zeros(2, 9, 8))
    packed = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    with pytest.raises(ValueError, match="Packed texts have to be rows"):
        one(tokens, position_ids=packed)
    one(tokens, position_ids=torch.arange(9).expand(2, 9))
    with pytest.raises(ValueError, match="use_cache=False"):
        lstm(tokens, use_cache=True)
    with pytest.raises(ValueError, match="evaluation mode"):
        model("contractive").train()(tokens, use_cache=True)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        one(tokens + VOCABULARY)


@pytest.mark.parametrize("gradient", [Phantom(), Unrolled(steps=3), Implicit(), Guarded()])
def test_steps_are_computed_again_on_request(gradient: Gradient) -> None:
    one, tokens = model("contractive", depth=Equilibrium(gradient=gradient)).train(), text()
    gradients = []
    for on in (False, True):
        if on:
            one.activation_checkpointing_enable({"use_reentrant": False})
        assert one.is_activation_checkpointing == on
        torch.manual_seed(1)
        one.zero_grad()
        one(tokens, labels=tokens).loss.backward()
        gradients.append([p.grad.clone() for p in one.parameters() if p.grad is not None])
    torch.testing.assert_close(*gradients)
    assert isinstance(one.model, LanguageModel)
    assert "checkpoint=True" in repr(one.depth)
    one.activation_checkpointing_disable()
    assert "checkpoint=True" not in repr(one.depth)
    with pytest.raises(ValueError, match="every_n_layers 2"):
        one.activation_checkpointing_enable(every_n_layers=2)
    reversible = model("contractive", depth=Equilibrium(gradient=Reversible()))
    with pytest.raises(ValueError, match="recomputes by itself"):
        reversible.activation_checkpointing_enable()


def test_layers_of_the_cache() -> None:
    assert {kind: model(kind).config.num_hidden_layers for kind in CACHED} == LAYERS
    for kind in UNCACHED:
        one = model(kind)
        assert isinstance(one.model, CausalModel)
        with torch.no_grad():
            assert one(text()).past_key_values is None


@pytest.mark.parametrize("kind", ["contractive", "weight-norm", "spectral-norm", "trellis", "lstm"])
def test_embedded_tokens_are_read_as_the_tokens(kind: str) -> None:
    one, tokens = model(kind), text()
    embedded = one.model.embedding(tokens)
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0
    for use_cache in {one.generation_config.use_cache, False}:
        options = {"attention_mask": mask, "use_cache": use_cache}
        with torch.no_grad():
            torch.testing.assert_close(one(inputs_embeds=embedded, **options).logits, one(tokens, **options).logits)
        options |= {"max_new_tokens": 6, "do_sample": False}
        if kind == "lstm":  # what is written has ids alone, and features are not read afresh
            with pytest.raises(ValueError, match="omit past_key_values"):
                one.generate(inputs_embeds=embedded, **options)
        else:
            written = one.generate(tokens, **options)[:, 9:]
            assert torch.equal(one.generate(inputs_embeds=embedded, **options), written)
    one.zero_grad()
    embedded = embedded.detach().requires_grad_()
    one(inputs_embeds=embedded, labels=tokens).loss.backward()
    assert embedded.grad is not None
    assert embedded.grad.abs().sum() > 0


def test_dropped_tokens_need_their_ids() -> None:
    one = model("contractive", regularisation=partial(Regularisation, token_dropout=0.5)).train()
    with pytest.raises(ValueError, match=r"token_dropout = 0\.5 drops tokens of the vocabulary"):
        one(inputs_embeds=torch.zeros(2, 9, 16))
    one.eval()(inputs_embeds=torch.zeros(2, 9, 16))


@pytest.mark.parametrize("kind", ["contractive", "around", "trellis", "lstm"])
def test_what_is_masked_is_not_there(kind: str) -> None:
    one, tokens = model(kind), text(3, 9)
    mask = torch.tensor([[1, 0, 1, 1, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 0, 0, 0, 0], [1] * 9])
    for use_cache in {one.generation_config.use_cache, False}:
        with torch.no_grad():
            together = one(tokens, attention_mask=mask, use_cache=use_cache).logits
        written = one.generate(tokens, attention_mask=mask, max_new_tokens=5, do_sample=False, use_cache=use_cache)
        for row, present in enumerate(mask.bool()):
            alone = tokens[row : row + 1, present]
            with torch.no_grad():
                torch.testing.assert_close(together[row, present], one(alone).logits[0], rtol=1e-4, atol=1e-4)
            if bool(present[-1]):  # transformers takes the prediction of the last column
                expected = one.generate(alone, max_new_tokens=5, do_sample=False)[:, alone.shape[1] :]
                assert torch.equal(written[row : row + 1, 9:], expected)


def test_the_backbone_alone(tmp_path: Path) -> None:
    one = model("contractive")
    one.save_pretrained(tmp_path)
    backbone: Any = AutoModel.from_pretrained(tmp_path)
    with torch.no_grad():
        states = backbone(text()).last_hidden_state
        torch.testing.assert_close(one.lm_head(states), one(text()).logits, rtol=1e-4, atol=1e-4)
    backbone.save_pretrained(tmp_path / "backbone")
    torch.testing.assert_close(equilibria.load(tmp_path / "backbone").state_dict(), one.model.state_dict())
    other, report = loaded(tmp_path / "backbone", output_loading_info=True)
    assert not any(report.values())
    torch.testing.assert_close(other.state_dict(), one.state_dict())


def test_a_loss_taken_elsewhere_lacks_the_penalties() -> None:
    one = model("contractive", depth=Equilibrium(residual_penalty=1.0)).train()
    one(text(), labels=text())
    with pytest.warns(UserWarning, match="the recipe's penalties are in no loss"):
        one.base_model(text())


def test_a_string_ends_a_text() -> None:
    one: Any = EquilibriaForCausalLM(EquilibriaConfig.of(KINDS["contractive"], 128)).eval()  # every token a character
    tokenizer = stock_tokenizer(byte_tokenizer())
    options: Any = {"do_sample": False, "max_new_tokens": 6}
    prompt = tokenizer("the cat", return_tensors="pt")
    first = tokenizer.decode(one.generate(**prompt, **options)[0, 7:8])
    stopped = one.generate(**prompt, **options, stop_strings=[first], tokenizer=tokenizer)
    assert stopped.shape[1] == 8


def test_a_guess_changes_nothing() -> None:
    one, prompt = model("contractive"), text(1, 9)
    options = {"max_new_tokens": 12, "do_sample": False}
    expected = one.generate(prompt, **options)
    assert torch.equal(one.generate(prompt, prompt_lookup_num_tokens=2, **options), expected)
    torch.manual_seed(3)
    assistant: Any = EquilibriaForCausalLM(one.config).eval()
    assert torch.equal(one.generate(prompt, assistant_model=assistant, **options), expected)


class Adapter(torch.nn.Module):
    """A linear layer and a product of two small matrices beside it, as libraries of adapters put in its place."""

    def __init__(self, base: torch.nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.in_features, self.out_features = base.in_features, base.out_features
        self.down = torch.nn.Parameter(torch.randn(2, base.in_features) / 9)
        self.up = torch.nn.Parameter(torch.randn(base.out_features, 2) / 9)

    @property
    def weight(self) -> torch.Tensor:
        return self.base.weight

    @property
    def bias(self) -> torch.Tensor | None:
        return self.base.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T


@pytest.mark.parametrize("kind", ["contractive", "shared-biases", "trellis", "around"])
def test_an_adapter_in_the_place_of_a_layer_is_used(kind: str) -> None:
    one, merged = model(kind), model(kind)
    adapters = []
    for name, layer in [*one.model.named_modules()]:
        if type(layer) is torch.nn.Linear:
            parent, _, last = name.rpartition(".")
            adapters.append(adapter := Adapter(layer))
            setattr(one.model.get_submodule(parent), last, adapter)
            with torch.no_grad():
                merged.model.get_submodule(name).weight += adapter.up @ adapter.down
    assert len(adapters) >= 2
    for use_cache in (False, True):
        with torch.no_grad():
            found, expected = (each(text(), use_cache=use_cache).logits for each in (one, merged))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    one(text(), labels=text()).loss.backward()
    assert all(adapter.up.grad is not None and adapter.up.grad.abs().sum() > 0 for adapter in adapters)
