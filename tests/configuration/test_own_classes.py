"""Classes of one's own in recipes: what is wrong with them is a sentence."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import equilibria as eq
from equilibria.configuration import checked, read_recipe, write_recipe
from equilibria.configuration.kinds import FAMILIES
from equilibria.errors import UserError
from tiny import tiny_recipe, tiny_task_recipe, with_model

MODULE = """
from typing import Any
import torch
from torch import nn
import equilibria as eq
from equilibria.optimization import Schedule

class Broken(eq.Cell):
    def __init__(self, d_model: int = 16) -> None:
        super().__init__()
        self.d_model = {}["width"]

class Nameless(eq.Cell):
    def __init__(self, width: int = 16) -> None:
        super().__init__()

class Unprepared(eq.Cell):
    def __init__(self, d_model: int = 16) -> None:
        self.layer = nn.Linear(d_model, d_model)

class Needy(eq.Cell):
    def __init__(self, function, d_model: int = 16) -> None:
        super().__init__()

class Odd(eq.Cell):
    def __init__(self, d_model: "Missing" = 16) -> None:
        super().__init__()

class Open(eq.Cell):
    def __init__(self, d_model: int = 16, sizes: list[int] = (1,), pair: tuple[int, int] = (1, 2), *rest: int,
                 names: tuple[str, ...] = (), **others: int) -> None:
        super().__init__()
        self.d_model, self.sizes, self.pair, self.names = d_model, sizes, pair, names

class Unfinished(eq.Depth):
    pass

class Featured(eq.Depth):
    def __init__(self, features: int = 3) -> None:
        self.features = features

    def reach(self, f: Any, z0: torch.Tensor, training: bool) -> Any:
        raise NotImplementedError

class NoTokens(eq.TokenEmbedding):
    pass

class Plain(eq.SequenceTask):
    def __init__(self, symbols: int = 3, held_out: int = 4) -> None:
        self.symbols, self.held_out = symbols, held_out

    vocabulary_size = property(lambda self: self.symbols)
    length = property(lambda self: 4)
    count = property(lambda self: self.symbols**4)

    def segment(self, numbers):
        tokens = torch.from_numpy(numbers)[:, None] // self.symbols ** torch.arange(4) % self.symbols
        return eq.Segment(tokens, tokens, starts=True)

class Printed(Plain):
    fingerprint = property(lambda self: f"{self.symbols} {self.held_out}")

class Forgetful(Printed):
    def __init__(self, symbols: int = 3, held_out: int = 4, skew: float = 0.5) -> None:
        super().__init__(symbols, held_out)

class Knee(Schedule):
    def __init__(self, knee: int = 3, height: float = float("inf")) -> None:
        super().__init__(warmup_steps=1)
        self.knee, self.height = knee, height

    def after_warmup(self, step, steps):
        return 1.0 if step < self.knee else 0.1

class Damped(eq.PullbackGradient):
    def __init__(self, τ: float = 0.5) -> None:
        self.τ = τ

    def pullback(self, evaluation, grad, solution):
        return self.τ * grad

class Outer:
    class Inner(eq.Cell):
        def __init__(self, d_model: int = 16) -> None:
            super().__init__()
            self.d_model = d_model

class Silent(Knee):
    def __init__(self, knee: int = 3) -> None:
        raise ValueError

class Rateless(torch.optim.Optimizer):
    def __init__(self, params: Any, eta: float = 1.0) -> None:
        super().__init__(params, {"eta": eta})
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "own_parts.py").write_text(MODULE)
    (tmp_path / "faulty.py").write_text("import torch\ntorch.nothing\nclass Cell: pass\n")
    (tmp_path / "unreadable.py").write_text("class Cell\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_parts", None)


def read(tmp_path: Path, *flags: str) -> eq.Recipe:
    path = tmp_path / "recipe.toml"
    path.write_text('[run]\nname = "x"\n')
    return read_recipe(path, flags)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("model.cell=own_parts:Broken", r"model\.cell: KeyError: 'width' \(.*own_parts\.py, line 11\)"),
        ("model.cell=own_parts:Nameless", r"model\.cell: Nameless sets no d_model"),
        ("model.cell=own_parts:Unprepared", r"model\.cell: AttributeError: .* \(.*own_parts\.py, line 19\)"),
        ("model.cell=own_parts:Needy", r"model\.cell: TypeError: .*missing 1 required positional argument: 'function'"),
        ("model.cell=own_parts:Odd", r"an annotation of own_parts:Odd cannot be read: name 'Missing'"),
        ("model.depth=own_parts:Unfinished", r"model\.depth: TypeError: .*abstract"),
        ("training.schedule=own_parts:Silent", r"training\.schedule: ValueError \(.*own_parts\.py, line \d+\)"),
        ("data.source=own_parts:Forgetful", "Forgetful has no attribute skew; keep the argument"),
        ("training.optimizer=own_parts:Rateless", "optimizer: Rateless has no lr, which the schedule sets"),
        ("training.optimizer=torch.optim:LBFGS", "optimizer: TypeError: .*closure"),
        ("training.optimizer=torch.optim:SparseAdam", "optimizer: RuntimeError: SparseAdam does not support dense"),
        ("model.cell=..own_parts:Open", '"..own_parts:Open": expected package.module:Class'),
        ("model.cell=own_parts:", '"own_parts:": expected package.module:Class'),
        ("model.cell=own_parts:Gone", "the module own_parts has no Gone"),
        ("model.cell=own_parts:Outer.Gone", r"the module own_parts has no Outer\.Gone"),
        ("model.cell=missing_parts:Cell", "No module named 'missing_parts'.; install it"),
        ("model.cell=faulty:Cell", r"cannot be imported: AttributeError: .*nothing.* \(.*faulty\.py, line 2\)"),
        ("model.cell=unreadable:Cell", r"cannot be imported: SyntaxError: .*\(unreadable\.py, line 1\)$"),
    ],
)
def test_what_is_wrong_with_a_class_is_said(tmp_path: Path, flag: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, f"--{flag}")


def test_an_embedding_without_its_methods_is_a_sentence_where_it_is_built(tmp_path: Path) -> None:
    recipe = read(tmp_path, "--model.embedding=own_parts:NoTokens")
    with pytest.raises(ValueError, match=r"model\.embedding: TypeError: Can't instantiate abstract class NoTokens"):
        recipe.model.build(10)


def test_lists_and_tuples_are_options_and_open_arguments_are_none(tmp_path: Path) -> None:
    cell = "--model.cell"
    flags = [f"{cell}=own_parts:Open", f"{cell}.sizes", "3", "4", f"{cell}.pair", "[5, 6]", f'{cell}.names=["a", "b"]']
    model = read(tmp_path, *flags).model
    assert isinstance(model, eq.LanguageModelRecipe)
    options = {"sizes": (3, 4), "pair": (5, 6), "names": ("a", "b"), "d_model": 16}
    assert model.cell.keywords == options
    with pytest.raises(UserError, match="pair: has 3 values: expected 2"):
        read(tmp_path, f"{cell}=own_parts:Open", f"{cell}.pair", "1", "2", "3")


def test_an_option_of_a_depth_may_have_any_name(tmp_path: Path) -> None:
    model = read(tmp_path, "--model.depth=own_parts:Featured", "--model.depth.features=5").model
    assert isinstance(model, eq.LanguageModelRecipe)
    assert vars(model.build(10).depth) == {"features": 5}


def test_pytorch_s_options_are_tried(tmp_path: Path) -> None:
    optimizer = "--training.optimizer"
    with pytest.raises(UserError, match="optimizer: Nesterov momentum requires"):
        read(tmp_path, f"{optimizer}=torch.optim:SGD", f"{optimizer}.nesterov=true")
    found = read(tmp_path, f"{optimizer}=torch.optim:Adagrad").training.optimizer
    assert isinstance(found, partial)
    assert isinstance(found.func, type)
    family = next(family for family in FAMILIES if family.noun == "optimizer")
    assert family.name(found.func) == "torch.optim:Adagrad"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cell": partial(eq.ContractiveCell, 16, 2)}, "ContractiveCell has arguments without a name, .16, 2."),
        ({"cell": partial(eq.ContractiveCell, injection=False)}, "ContractiveCell: injection is no option of a recipe"),
        ({"cell": eq.ContractiveCell}, r"model\.cell.*expected a section"),
        ({"depth": 5}, r"model\.depth.*expected a section"),
        ({"memory_length": True}, r"memory_length = True: expected an integer"),
    ],
)
def test_a_recipe_from_python_is_what_its_file_can_hold(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    recipe = with_model(tiny_recipe(tmp_path), **changes)
    with pytest.raises(UserError, match=message):
        checked(recipe)
    with pytest.raises(UserError, match=message):
        eq.train(recipe)
    assert not recipe.run.folder.exists()


def test_numbers_that_no_machine_has_are_refused(tmp_path: Path) -> None:
    for flag in ("seed=18446744073709551616", "threads=3000000000", "batch_size=99999999999999999999999"):
        with pytest.raises(UserError, match=f"{flag.partition('=')[0]} must be at most"):
            read(tmp_path, f"--training.{flag}")


def test_ranges_are_said_beside_types_and_unset_needs_a_key(tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        read(tmp_path, "--training.learning_rate=-1", "--training.steps=1e3")
    assert "steps" in str(raised.value)
    assert "learning_rate must be above 0" in str(raised.value)
    with pytest.raises(UserError, match="--unset has no value"):
        read(tmp_path, "--unset")
    with pytest.raises(UserError, match=r"averaging = none: it has no decay then"):
        read(tmp_path, "--training.averaging=none", "--training.averaging.decay=0.5")


def test_plain_classes_are_sections_like_any(tmp_path: Path) -> None:
    schedule = ["--training.schedule=own_parts:Knee", "--training.schedule.knee=4"]
    gradient = ["--model.depth.gradient=own_parts:Damped", "--model.depth.gradient.τ=0.25"]
    cell = ["--model.cell=own_parts:Outer.Inner", "--model.cell.d_model=8"]
    recipe = read(tmp_path, *schedule, *gradient, *cell, "--data.source=own_parts:Printed", "--data.symbols=2")
    write_recipe(recipe, tmp_path / "written.toml")
    found = read_recipe(tmp_path / "written.toml")
    for each in (recipe, found):
        assert vars(each.training.schedule) == {"warmup_steps": 1, "knee": 4, "height": float("inf")}
        assert isinstance(each.data, eq.SequenceTask)
        assert (each.data.count, each.data.held_out) == (16, 4)
        assert isinstance(each.model, eq.LanguageModelRecipe)
        assert isinstance(each.model.depth, eq.Equilibrium)
        assert vars(each.model.depth.gradient) == {"τ": 0.25}
        assert each.model.cell.keywords == {"d_model": 8}


def test_a_plain_task_is_trained_on_if_it_says_what_it_is(tmp_path: Path) -> None:
    recipe = replace(tiny_task_recipe(tmp_path), data=read(tmp_path, "--data.source=own_parts:Printed").data)
    assert eq.train(recipe).step == recipe.training.steps
    plain = replace(recipe, data=read(tmp_path, "--data.source=own_parts:Plain").data)
    with pytest.raises(UserError, match="Plain has no fingerprint; define it"):
        eq.train(replace(plain, run=replace(plain.run, name="plain")))
    assert not (recipe.run.directory / "plain").exists()


def test_a_class_that_no_other_program_can_import_is_refused_before_training(tmp_path: Path) -> None:
    class Local(eq.ContractiveCell):
        pass

    class Scripted(eq.ContractiveCell):
        pass

    Scripted.__module__, Scripted.__qualname__ = "__main__", "Scripted"
    for cls in (Local, Scripted):
        recipe = with_model(tiny_recipe(tmp_path), cell=partial(cls, d_model=16, heads=2))
        with pytest.raises(UserError, match=f"other programs cannot import .*{cls.__name__}; define it at the top"):
            eq.train(recipe)
        assert not recipe.run.folder.exists()
