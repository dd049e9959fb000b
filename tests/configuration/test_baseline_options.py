"""Every option of a baseline reaches its class, and a regularisation every model of text."""

from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from equilibria.configuration import (
    DataRecipe,
    ModelRecipe,
    RegularisationRecipe,
    build_model,
)
from equilibria.configuration.baseline import BASELINE_OPTIONS
from equilibria.configuration.model import REGULARISATION
from equilibria.configuration.recipe import problems
from equilibria.models import Regularisation
from equilibria.paper.baselines import SequenceModel
from equilibria.paper.universal_transformer import UniversalTransformer
from options import LAYERS, VALUES, baseline, baseline_recipe, cases, language_model, recipe


@pytest.mark.parametrize(("kind", "option"), cases({kind: BASELINE_OPTIONS[kind] for kind in LAYERS}))
def test_an_option_changes_the_baseline(kind: str, option: str) -> None:
    options = {option: VALUES[option]}
    if kind == "gated_convolution":
        options = {name: VALUES[name] for name in ("kernel_sizes", "channels")} | options
    if option == "window":
        options = {option: 4}
    torch.manual_seed(0)
    built = baseline(baseline_recipe(kind, **options))
    torch.manual_seed(0)
    usual = baseline(baseline_recipe(kind, **({"hidden": 8} if option == "hidden" else {})))

    def described(model: SequenceModel) -> list[dict[str, object]]:
        return [
            {name: value for name, value in vars(layer).items() if not name.startswith("_")}
            | {name: tensor.shape for name, tensor in layer.state_dict().items()}
            for layer in model.layers
        ]

    if option == "hidden_dropout":
        assert (built.hidden_dropout, usual.hidden_dropout) == (0.25, 0.0)
    else:
        assert described(built) != described(usual)
    tokens = torch.arange(10).reshape(2, 5)
    output = built(tokens, tokens)
    assert torch.isfinite(output.loss)
    assert output.logits.shape == (2, 5, 11)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_tied_baseline_ends_in_the_width_of_the_embedding(kind: str) -> None:
    built = baseline(baseline_recipe(kind, "tied"))
    tokens = torch.arange(10).reshape(2, 5)
    assert built(tokens).hidden.shape == (2, 5, 16)
    assert built(tokens).memory is not None


@pytest.mark.parametrize("option", REGULARISATION)
def test_a_regularisation_reaches_every_model_of_text(option: str) -> None:
    section, expected = RegularisationRecipe(**{option: 0.25}), Regularisation(**{REGULARISATION[option]: 0.25})
    assert baseline(replace(baseline_recipe("lstm"), regularisation=section)).regularisation == expected
    assert language_model(ModelRecipe(regularisation=section)).regularisation == expected
    assert {field.name for field in fields(Regularisation)} == set(REGULARISATION.values())


def encoder_decoder(**options: Any) -> UniversalTransformer:
    reversal = replace(
        recipe(baseline_recipe("universal_transformer", "tied", **options)), data=DataRecipe(source="reversal")
    )
    assert list(problems(reversal)) == []
    built = build_model(reversal, 11)
    assert isinstance(built, UniversalTransformer)
    return built


def test_options_of_the_encoder_decoder() -> None:
    usual, built = encoder_decoder(), encoder_decoder(dropout=0.25, max_steps=3, threshold=0.5, ponder_weight=0.25)
    assert (usual.dropout, built.dropout) == (0.0, 0.25)
    for depth in (built.encoder, built.decoder):
        assert (depth.max_steps, depth.threshold, depth.ponder_weight) == (3, 0.5, 0.25)
    for name, value in (("heads", 2), ("inner", 24)):
        other = encoder_decoder(**{name: value})
        blocks = (
            [(block.self_attention.num_heads, block.feed_forward.expand.out_features) for block in (m.read, m.write)]
            for m in (usual, other)
        )
        assert next(blocks) != next(blocks)
    assert built.encoder is not built.decoder


def test_a_task_of_pairs_and_its_model_need_each_other() -> None:
    pairs, text = baseline_recipe("universal_transformer"), ModelRecipe()
    for model, data in ((pairs, DataRecipe(source="copy_memory")), (text, DataRecipe(source="reversal"))):
        found = list(problems(replace(recipe(model), data=data)))
        assert found == [
            'data.source = "reversal" and model.baseline.kind = "universal_transformer" go together: give both or none'
        ]
    section = RegularisationRecipe(output_dropout=0.5)
    foreign = replace(
        recipe(replace(pairs, regularisation=section, memory_length=3)), data=DataRecipe(source="reversal")
    )
    assert [problem.split()[0] for problem in problems(foreign)] == ["model.regularisation", "model.memory_length"]
