"""The cell through torch.compile: the same steps, with the gradient that needs the compiled graph many times."""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from distributed_cases import IMPLICIT, RECIPE, build, language_model
from equilibria.cells import TrellisCell
from equilibria.configuration import read_recipe, write_recipe
from equilibria.depths import Depth, PathNoise, RandomStart
from equilibria.distributed import ALONE
from equilibria.errors import UserError
from tiny import tiny_recipe, with_model

COMPILER = next(filter(shutil.which, ("g++", "clang++")), None)


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler, which inductor needs")
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize(
    "depth", [IMPLICIT, replace(IMPLICIT, start=RandomStart(), noise=PathNoise(), rounds=2)], ids=["plain", "drawn"]
)
def test_compiled_steps_are_those_of_plain_ones(depth: Depth) -> None:
    losses = []
    for compiled in (False, True):
        torch.manual_seed(0)
        recipe = replace(RECIPE, compile=compiled, learning_rate=3e-3)
        loop = build(recipe, language_model(depth), ALONE, "ddp")
        losses.append(torch.stack([loop.step() for _ in range(4)]))
        assert (loop.model.cell._compiled_call_impl is not None) == compiled  # pyright: ignore[reportAttributeAccessIssue]
    torch.testing.assert_close(losses[1], losses[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("there", [(), ("clang++", "c++")])
def test_without_the_compiler_that_pytorch_takes_it_is_an_error(monkeypatch: pytest.MonkeyPatch, there: tuple) -> None:
    monkeypatch.setattr("shutil.which", lambda name: name if name in there else None)
    options = SimpleNamespace(cpp=SimpleNamespace(cxx=(None, "g++")))
    monkeypatch.setattr("torch._inductor.config", options)
    with pytest.raises(UserError, match=r"training\.compile needs a C\+\+ compiler"):
        build(replace(RECIPE, compile=True), language_model(IMPLICIT), ALONE, "ddp")


def test_what_compiled_code_cannot_do_is_named(tmp_path: Path) -> None:
    path, trellis = tmp_path / "recipe.toml", tmp_path / "trellis.toml"
    recipe = tiny_recipe(tmp_path)
    write_recipe(recipe, path)
    write_recipe(with_model(recipe, cell=partial(TrellisCell, d_model=16, hidden=8)), trellis)
    newton = ["--model.depth.solver.method", "newton_krylov", "--model.depth.solver.scope", "sample"]
    for file, flags, said in (
        (path, ["--model.depth.jacobian_penalty", "0.1"], "second derivatives"),
        (trellis, [*newton, "--model.depth.solver.products", "exact"], "forward mode"),
    ):
        with pytest.raises(UserError, match=said):
            read_recipe(file, ["--training.compile", *flags])
    read_recipe(trellis, ["--training.compile", *newton, "--model.depth.solver.products", "differences"])
