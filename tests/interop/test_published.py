"""The importers against a plain implementation of the published models, and against the peers' own figures."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import equilibria
from equilibria.cli.app import main
from equilibria.configuration import read_recipe, table_of, write_recipe
from equilibria.depths import UnrolledDepth
from equilibria.inference import load_run
from plain_published import Published, Weights, mean_losses, random_weights
from tiny import with_model

INTEROP = Path(__file__).parents[3] / "shared" / "data" / "interop"

LM, SEQ = Published("torchdeq-lm"), Published("torchdeq-seq", iterations=None)


def text(model: Published, segments: int = 3, length: int = 3) -> list[tuple[Tensor, Tensor]]:
    """Segments of inputs and targets in which every cluster occurs."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(model.vocabulary_size, (2, segments * length + 1), generator=generator)
    cuts = range(0, segments * length, length)
    return [(tokens[:, i : i + length], tokens[:, i + 1 : i + length + 1]) for i in cuts]


def imported(model: Published, weights: Weights, folder: Path, *flags: str) -> list[float]:
    """The losses of the run that `equilibria import` makes of a file of these weights."""
    torch.save(weights, folder / "file.pth")
    options = ["--memory-length", str(model.memory_length), "--out", str(folder / "run")]
    if model.kind == "torchdeq-lm":
        options += ["--iterations", str(model.iterations)]
    if model.window != 1000:
        options += ["--window", str(model.window)]
    if model.one_table and model.cutoffs:
        options += ["--cutoffs", *map(str, model.cutoffs)]
    if model.pre_norm:
        options += ["--norm-position", "pre"]
    assert main(["import", model.kind, str(folder / "file.pth"), *options, *flags]) == 0
    return losses(folder / "run", text(model))


@torch.no_grad()
def losses(run: Path, segments: list[tuple[Tensor, Tensor]]) -> list[float]:
    """The mean loss of each segment, memory carried."""
    model, memory, found = equilibria.load(run), None, []
    for inputs, targets in segments:
        output = model(inputs, targets=targets, memory=memory)
        assert output.loss is not None
        memory = output.memory
        found.append(output.loss.item())
    return found


VARIANTS = {
    "the layout of deq-lm": LM,
    "the layout of deq-seq": SEQ,
    "one block, one head": replace(LM, blocks=1, heads=1, iterations=3),
    "three blocks, six heads": replace(LM, blocks=3, heads=6, iterations=2),
    "a narrow first cluster": replace(LM, d_embed=8),
    "four clusters of which the last is one wide": replace(SEQ, cutoffs=(5, 9, 20), div_val=3, d_embed=27),
    "one cluster with a projection": replace(LM, cutoffs=(), div_val=4),
    "one cluster without": replace(SEQ, cutoffs=(), div_val=1),
    "one cluster of another width": replace(SEQ, cutoffs=(), div_val=1, d_embed=6),
    "clusters of one table": replace(LM, div_val=1),
    "clusters of one table of another width": replace(SEQ, div_val=1, d_embed=5),
    "a short window": replace(LM, window=3),
    "a memory shorter than a segment": replace(SEQ, memory_length=2),
    "norms with gain and bias": replace(SEQ, affine=True),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_losses_are_those_of_the_published_model(variant: str, tmp_path: Path) -> None:
    model = VARIANTS[variant]
    weights = random_weights(model)
    assert imported(model, weights, tmp_path) == pytest.approx(mean_losses(model, weights, text(model)), abs=2e-5)


def test_norms_before(tmp_path: Path) -> None:
    model = replace(SEQ, pre_norm=True, heads=2, iterations=3)  # without a norm at its end it has no fixed point
    weights = random_weights(model)
    imported(model, weights, tmp_path)
    config = tmp_path / "run" / "config.toml"
    recipe = read_recipe(config)
    write_recipe(with_model(recipe, depth=UnrolledDepth(3)), config)
    wanted = mean_losses(model, weights, text(model))
    assert losses(tmp_path / "run", text(model)) == pytest.approx(wanted, abs=2e-5)


@pytest.mark.parametrize("model", [LM, SEQ])
@pytest.mark.parametrize("norm", ["parametrizations", "none"])
def test_weights_in_other_layouts(model: Published, norm: str, tmp_path: Path) -> None:
    weights = random_weights(model, norm=norm)
    assert imported(model, weights, tmp_path) == pytest.approx(mean_losses(model, weights, text(model)), abs=2e-5)
    kept = table_of(load_run(tmp_path / "run").recipe.model)["cell"]["normalisation"]
    assert kept == ("none" if norm == "none" else "weight")


def test_weights_of_which_some_are_normalised(tmp_path: Path) -> None:
    weights, plain = random_weights(LM), random_weights(LM, norm="none")
    mixed = {name: tensor for name, tensor in weights.items() if "o_net.weight" not in name}
    mixed |= {name: tensor for name, tensor in plain.items() if "o_net.weight" in name}
    assert imported(LM, mixed, tmp_path) == pytest.approx(mean_losses(LM, mixed, text(LM)), abs=2e-5)


@pytest.mark.parametrize("model", [LM, replace(SEQ, div_val=1, d_embed=6)])
def test_untied_projections(model: Published, tmp_path: Path) -> None:
    weights = random_weights(model, tied_projections=False)
    assert imported(model, weights, tmp_path) == pytest.approx(mean_losses(model, weights, text(model)), abs=2e-5)
    assert table_of(load_run(tmp_path / "run").recipe.model)["embedding"]["untied_projections"] == 3


@pytest.mark.parametrize("model", [LM, replace(SEQ, div_val=1)])
def test_an_untied_softmax(model: Published, tmp_path: Path) -> None:
    weights = random_weights(model)
    weights |= {name: tensor.flip(0) for name, tensor in weights.items() if name.startswith("crit.out_layers")}
    assert imported(model, weights, tmp_path) == pytest.approx(mean_losses(model, weights, text(model)), abs=2e-5)


def test_names_of_other_wrappings(tmp_path: Path) -> None:
    weights = random_weights(LM)
    wanted = mean_losses(LM, weights, text(LM))
    for number, renamed in enumerate(
        (
            {f"module.{name}": tensor for name, tensor in weights.items()},
            {f"_orig_mod.module.{name}": tensor for name, tensor in weights.items()},
            {name.replace("injection", "inject_conv"): tensor for name, tensor in weights.items()},
            {name: tensor for name, tensor in weights.items() if name != "pos_emb.inv_freq"},
            {name.replace("projs.1.weight", "projs.1"): tensor for name, tensor in weights.items()},
        )
    ):
        (tmp_path / str(number)).mkdir()
        assert imported(LM, renamed, tmp_path / str(number)) == pytest.approx(wanted, abs=2e-5)


def test_an_injection_without_a_bias(tmp_path: Path) -> None:
    weights = random_weights(SEQ)
    del weights["inject_conv.bias"]
    assert imported(SEQ, weights, tmp_path) == pytest.approx(mean_losses(SEQ, weights, text(SEQ)), abs=2e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype, tmp_path: Path) -> None:
    weights = {name: tensor.to(dtype) for name, tensor in random_weights(LM).items()}
    assert imported(LM, weights, tmp_path) == pytest.approx(mean_losses(LM, weights, text(LM)), abs=2e-5)


def test_heads_that_the_biases_do_not_say(tmp_path: Path) -> None:
    weights = {name: t.flatten() if "_bias" in name else t for name, t in random_weights(LM).items()}
    wanted = mean_losses(LM, random_weights(LM), text(LM))
    assert imported(LM, weights, tmp_path, "--heads", "3") == pytest.approx(wanted, abs=2e-5)


@pytest.mark.skipif(not INTEROP.is_dir(), reason="../shared/data/interop is absent")
@pytest.mark.parametrize("name", ["deq-lm", "deq-seq"])
@torch.no_grad()
def test_the_losses_of_the_published_code(name: str, tmp_path: Path) -> None:
    expected = json.loads((INTEROP / f"torchdeq-{name}.json").read_text(encoding="utf-8"))
    options = ["--memory-length", str(expected["model"]["memory_length"]), "--out", str(tmp_path / "run")]
    assert main(["import", f"torchdeq-{name[4:]}", str(INTEROP / f"torchdeq-{name}.pth"), *options]) == 0
    tokens, length = torch.tensor(expected["tokens"]), expected["model"]["segment_length"]
    model, memory = equilibria.load(tmp_path / "run"), None
    for index, segment in enumerate(expected["segments"]):
        part = slice(index * length, (index + 1) * length)
        output = model(tokens[:, part], targets=tokens[:, 1:][:, part], memory=memory)
        memory = output.memory
        assert output.loss is not None
        assert memory is not None
        assert output.loss.item() == pytest.approx(segment["mean_nll"], abs=2e-6)
        assert memory.states[0].norm().item() == pytest.approx(segment["z_norm"], rel=1e-5)
