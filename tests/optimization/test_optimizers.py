from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn.utils.parametrizations import weight_norm

from equilibria.cells import ContractiveCell
from equilibria.configuration import TrainingRecipe
from equilibria.models import LanguageModel
from equilibria.nn import AdaptiveEmbedding, UntiedEmbedding
from equilibria.optimization import (
    SGD,
    Adam,
    AdamW,
    Cosine,
    Linear,
    Muon,
    Optimizer,
    RAdam,
    Rates,
    ScheduledOptimizers,
    WarmupStableDecay,
    adopted,
    parameter_groups,
)
from equilibria.optimization.muon import GramMuon

RECIPE = TrainingRecipe(steps=40, schedule=Cosine(warmup_steps=4))
FALLING = Linear(warmup_steps=4)
ADADELTA = partial(optim.Adadelta, weight_decay=1e-4)  # of PyTorch's, and of no use to a recipe of this package's own
RECIPES = {
    "adamw": replace(RECIPE, learning_rate=1e-2),
    "adam": replace(RECIPE, optimizer=Adam(weight_decay=1e-4), learning_rate=1e-2),
    "radam": replace(RECIPE, optimizer=RAdam(weight_decay=0.1), learning_rate=1e-2),
    "sgd": replace(RECIPE, optimizer=SGD(), learning_rate=0.3),
    "sgd with momentum": replace(RECIPE, optimizer=SGD(momentum=0.9), learning_rate=0.05, schedule=FALLING),
    "muon": replace(RECIPE, optimizer=Muon(), learning_rate=1e-2, schedule=WarmupStableDecay(warmup_steps=4)),
    "rates": replace(RECIPE, learning_rate=1e-2, rates=Rates(embedding=0.5, vectors=3.0)),
    "another's": replace(RECIPE, optimizer=ADADELTA, learning_rate=1.0),
}
each_recipe = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())


class Small(nn.Module):
    """Every kind of parameter: rows of tokens, matrices, a kernel, biases, norms, gains of normalised weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.inner = nn.Linear(4, 4)
        self.convolution = nn.Conv1d(4, 4, 2)
        self.normalised = weight_norm(nn.Linear(4, 4, bias=False), dim=0)
        self.head_bias = nn.Parameter(torch.zeros(2, 2))
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.frozen = nn.Linear(4, 4, bias=False).requires_grad_(False)

    def forward(self, tokens_N: Tensor) -> Tensor:
        x_ND = self.normalised(self.inner(self.embedding(tokens_N)).relu())
        pairs_NDK = torch.stack([x_ND, x_ND.roll(1, 0)], dim=-1)
        return self.head(self.norm(self.convolution(pairs_NDK).squeeze(-1) + self.head_bias.flatten()))


class Bare(optim.SGD):
    """Needs a rate, and has no annotations: a recipe cannot set its decay."""

    def __init__(self, params, lr, weight_decay=0.1):
        super().__init__(params, lr=lr, weight_decay=weight_decay)


MATRICES = {"inner.weight", "convolution.weight", "normalised.parametrizations.weight.original1"}
VECTORS = {
    *("inner.bias", "convolution.bias", "head_bias", "norm.weight", "norm.bias"),
    "normalised.parametrizations.weight.original0",
}


def small() -> Small:
    torch.manual_seed(0)
    return Small()


def scheduled(model: nn.Module, recipe: TrainingRecipe) -> ScheduledOptimizers:
    return ScheduledOptimizers(
        model, recipe.optimizer, recipe.schedule, recipe.steps, recipe.learning_rate, recipe.rates
    )


def built(model: nn.Module, optimizer: Optimizer | partial[optim.Optimizer]) -> tuple[optim.Optimizer, ...]:
    return adopted(optimizer).build(parameter_groups(model), 0.25, Rates())


def train(model: Small, optimizers: ScheduledOptimizers, steps: int) -> list[float]:
    """On the sequence in which each token is followed by the next; the losses before the steps."""
    tokens = torch.arange(40) % 5
    losses = []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(tokens), tokens.roll(-1))
        loss.backward()
        losses.append(float(loss.detach()))
        optimizers.step()
    return losses


def test_parameters_have_parameter_groups() -> None:
    found = parameter_groups(Small())
    assert set(found.cell) == MATRICES
    assert set(found.vectors) == VECTORS
    assert set(found.embedding) == {"embedding.weight"}
    assert found.head == {}


def language_model(embedding: AdaptiveEmbedding | UntiedEmbedding) -> LanguageModel:
    return LanguageModel(embedding, ContractiveCell(d_model=8, heads=2, inner=16))


def test_the_head_is_what_an_embedding_has_besides_its_rows_of_tokens() -> None:
    found = parameter_groups(language_model(AdaptiveEmbedding(30, 8, (10, 20), div_val=2)))
    clusters = range(3)
    assert set(found.embedding) == {f"embedding.tables.{cluster}.weight" for cluster in clusters}
    projections = {f"embedding.projections.{cluster}" for cluster in clusters}
    assert set(found.head) == projections | {"embedding.own_projections.0"}
    assert {f"embedding.biases.{cluster}" for cluster in clusters} < set(found.vectors)
    assert found.cell
    assert all(name.startswith("cell.") for name in found.cell)


def test_an_output_layer_of_its_own_is_the_head_and_muon_leaves_it_alone() -> None:
    model = language_model(UntiedEmbedding(30, 8))
    found = parameter_groups(model)
    assert set(found.embedding) == {"embedding.rows.weight"}
    assert set(found.head) == {"embedding.output.weight"}
    muon, adamw = built(model, Muon())
    taken = [id(parameter) for parameter in muon.param_groups[0]["params"]]
    assert taken == [id(parameter) for parameter in found.cell.values()]
    rest = {id(parameter) for group in adamw.param_groups for parameter in group["params"]}
    assert rest == {id(parameter) for parameter in model.parameters()} - set(taken)


@each_recipe
def test_each_role_has_its_rate(recipe: TrainingRecipe) -> None:
    """Beside an optimizer per role at that role's own rate, on the same gradients: PyTorch's word for a group."""
    rates = {"embedding": 0.5, "cell": 2.0, "head": 0.25, "vectors": 0.0}
    model = language_model(UntiedEmbedding(6, 8))
    alone = {role: deepcopy(model) for role in rates}
    steps = {"together": scheduled(model, replace(recipe, rates=Rates(**rates)))}
    for role, rate in rates.items():
        if rate:
            own = replace(recipe, learning_rate=recipe.learning_rate * rate, rates=Rates())
            steps[role] = scheduled(alone[role], own)
    tokens = torch.arange(12).view(2, 6) % 6
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for _ in range(3):
        loss = model(tokens, tokens.roll(-1, 1)).loss
        assert loss is not None
        loss.backward()
        for copy in alone.values():
            for mine, theirs in zip(copy.parameters(), model.parameters(), strict=True):
                mine.grad = None if theirs.grad is None else theirs.grad.clone()
        for optimizers in steps.values():
            optimizers.step()
    for role, names in vars(parameter_groups(model)).items():
        for name in names:
            expected = dict(alone[role].named_parameters())[name] if rates[role] else start[name]
            # Several tensors in one call, or each in its own: kernels may round otherwise.
            torch.testing.assert_close(model.get_parameter(name), expected, msg=lambda m, name=name: f"{name}: {m}")
    assert steps["together"].learning_rate == recipe.learning_rate
    assert not torch.equal(model.get_parameter("embedding.rows.weight"), start["embedding.rows.weight"])


@each_recipe
def test_matrices_alone_decay_and_every_parameter_is_moved_once(recipe: TrainingRecipe) -> None:
    model = small()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimizer = recipe.optimizer
    changed = (
        partial(optimizer, weight_decay=0.5) if isinstance(optimizer, partial) else replace(optimizer, weight_decay=0.5)
    )
    groups = [group for each in built(model, changed) for group in each.param_groups]
    moved = [names[id(parameter)] for group in groups for parameter in group["params"]]
    decayed = {names[id(parameter)] for group in groups if group["weight_decay"] for parameter in group["params"]}
    assert sorted(moved) == sorted(MATRICES | VECTORS | {"embedding.weight"})
    assert decayed == MATRICES
    assert {group["weight_decay"] for group in groups} == {0.0, 0.5}


@pytest.mark.parametrize(
    ("optimizer", "kinds", "options"),
    [
        (AdamW(), [optim.AdamW], {"weight_decay": 0.1, "betas": (0.9, 0.95)}),
        (Adam(), [optim.Adam], {"weight_decay": 0.0, "betas": (0.9, 0.999)}),
        (RAdam(), [optim.RAdam], {"weight_decay": 0.0, "betas": (0.9, 0.999), "decoupled_weight_decay": True}),
        (SGD(), [optim.SGD], {"weight_decay": 0.0, "momentum": 0.0, "dampening": 0.0}),
        (Muon(), [GramMuon, optim.AdamW], {"weight_decay": 0.1, "momentum": 0.95}),
        (partial(optim.Adadelta, rho=0.8), [optim.Adadelta], {"weight_decay": 0.0, "rho": 0.8}),
        (partial(optim.AdamW), [optim.AdamW], {"weight_decay": 0.01}),
        (partial(optim.AdamW, weight_decay=0.3), [optim.AdamW], {"weight_decay": 0.3}),
        (partial(Bare), [Bare], {"weight_decay": 0.1}),
    ],
)
def test_what_a_recipe_leaves_out_is_the_optimizers_own(
    optimizer: Optimizer | partial[optim.Optimizer], kinds: list[type], options: dict[str, object]
) -> None:
    found = built(small(), optimizer)
    assert [type(each) for each in found] == kinds
    group = found[0].param_groups[0]
    assert {key: group[key] for key in ("lr", *options)} == {"lr": 0.25, **options}


def test_what_a_recipe_says_reaches_the_groups() -> None:
    muon, adamw = built(small(), Muon(weight_decay=0.5, momentum=0.7, beta1=0.8, beta2=0.9))
    assert {key: muon.param_groups[0][key] for key in ("lr", "weight_decay", "momentum")} == {
        "lr": 0.25,
        "weight_decay": 0.5,
        "momentum": 0.7,
    }
    assert adamw.param_groups[0]["betas"] == (0.8, 0.9)
    assert [matrix.ndim for matrix in adamw.param_groups[0]["params"]] == [3]  # Muon takes no kernels


def test_an_accelerator_has_pytorchs_muon() -> None:
    with torch.device("meta"):
        muon, _ = built(Small(), Muon(momentum=0.7))
    assert type(muon) is optim.Muon
    group = muon.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["momentum"]) == (0.25, 0.1, 0.7)
    assert group["adjust_lr_fn"] == "match_rms_adamw"


@each_recipe
def test_it_lowers_a_loss(recipe: TrainingRecipe) -> None:
    model = small()
    losses = train(model, scheduled(model, recipe), 40)
    assert losses[-1] < 0.6 * losses[0]


@each_recipe
def test_what_it_keeps_is_known_beforehand(recipe: TrainingRecipe) -> None:
    model = small()
    with torch.device("meta"):
        expected = adopted(recipe.optimizer).state_bytes(parameter_groups(Small()))
    optimizers = scheduled(model, recipe)
    train(model, optimizers, 1)
    assert sum(tensor.nbytes for tensor in optimizers.tensors().values()) == expected


@each_recipe
def test_it_resumes_exactly(recipe: TrainingRecipe) -> None:
    whole, half = small(), small()
    expected = train(whole, scheduled(whole, recipe), 20)
    first = scheduled(half, recipe)
    losses = train(half, first, 9)
    saved = {name: tensor.clone() for name, tensor in first.tensors().items()}
    second = scheduled(half, recipe)
    second.restore(saved, done=9)
    assert second.learning_rate == first.learning_rate
    losses += train(half, second, 11)
    assert losses == expected
    for one, two in zip(whole.parameters(), half.parameters(), strict=True):
        assert torch.equal(one, two)


@each_recipe
def test_what_was_learned_matters(recipe: TrainingRecipe) -> None:
    """The test before this one would fail if nothing were restored."""
    if recipe.optimizer == SGD():
        assert scheduled(small(), recipe).tensors() == {}
        return
    whole, half = small(), small()
    expected = train(whole, scheduled(whole, recipe), 20)
    losses = train(half, scheduled(half, recipe), 9)
    forgetful = scheduled(half, recipe)
    forgetful.restore({}, done=9)
    losses += train(half, forgetful, 11)
    assert losses[:10] == expected[:10]
    assert losses != expected


def test_a_run_goes_on_without_momentum() -> None:
    """As a run that never had any would; the momentum of before is not kept for later."""
    recipe = RECIPES["sgd with momentum"]
    model = small()
    optimizers = scheduled(model, recipe)
    train(model, optimizers, 9)
    twin = deepcopy(model)
    found, expected = (scheduled(each, replace(recipe, optimizer=SGD())) for each in (model, twin))
    found.restore(optimizers.tensors(), done=9)
    expected.restore({}, done=9)
    assert train(model, found, 5) == train(twin, expected, 5)
    assert found.tensors() == {}


@each_recipe
def test_a_run_goes_on_with_part_of_the_model_frozen(recipe: TrainingRecipe) -> None:
    model = small()
    optimizers = scheduled(model, recipe)
    train(model, optimizers, 9)
    model.inner.requires_grad_(False)
    before = model.inner.weight.clone()
    found = scheduled(model, recipe)
    found.restore(optimizers.tensors(), done=9)
    kept = {name: tensor for name, tensor in optimizers.tensors().items() if ".inner." not in name}
    assert found.tensors().keys() == kept.keys()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in found.tensors().items())
    train(model, found, 1)
    assert torch.equal(model.inner.weight, before)


def dropped(kind: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name != f"{kind}.inner.weight"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dropped("exp_avg"), r"exp_avg of inner\.weight is missing"),
        (dropped("step"), r"step of inner\.weight is missing"),
        (lambda t: {**t, "exp_avg.inner.weight": torch.zeros(3, 3)}, r"inner\.weight is \(3, 3\), expected \(4, 4\)"),
        (lambda t: {**t, "momentum_buffer.inner.weight": torch.zeros(4, 4)}, r"momentum_buffer of .* is missing"),
        (lambda t: {**t, "exp_avg.other.weight": torch.zeros(4, 4)}, r"exp_avg\.other\.weight is of another"),
    ],
)
def test_a_state_that_does_not_fit_is_named(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str
) -> None:
    model = small()
    optimizers = scheduled(model, RECIPE)
    train(model, optimizers, 1)
    with pytest.raises(ValueError, match=message):
        scheduled(model, RECIPE).restore(change(optimizers.tensors()), done=1)
