"""Classes of one's own in recipes: what is wrong with them is a sentence."""

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import equilibria as eq
from equilibria.configuration import checked, read_recipe
from equilibria.configuration.kinds import FAMILIES
from equilibria.errors import UserError
from tiny import tiny_recipe, with_model

MODULE = """
from typing import Any
import torch
from torch import nn
import equilibria as eq

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

class Rateless(torch.optim.Optimizer):
    def __init__(self, params: Any, eta: float = 1.0) -> None:
        super().__init__(params, {"eta": eta})
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "own_parts.py").write_text(MODULE)
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
        ("model.cell=own_parts:Broken", r"model\.cell: KeyError: 'width' \(.*own_parts\.py, line 10\)"),
        ("model.cell=own_parts:Nameless", r"model\.cell: Nameless sets no d_model"),
        ("model.cell=own_parts:Unprepared", r"model\.cell: AttributeError: .* \(.*own_parts\.py, line 18\)"),
        ("model.cell=own_parts:Needy", r"model\.cell: TypeError: .*missing 1 required positional argument: 'function'"),
        ("model.cell=own_parts:Odd", r"an annotation of own_parts:Odd cannot be read: name 'Missing'"),
        ("model.depth=own_parts:Unfinished", r"model\.depth: TypeError: .*abstract"),
        ("training.optimizer=own_parts:Rateless", "optimizer: Rateless has no lr, which the schedule sets"),
        ("training.optimizer=torch.optim:LBFGS", "optimizer: TypeError: .*closure"),
        ("training.optimizer=torch.optim:SparseAdam", "optimizer: RuntimeError: SparseAdam does not support dense"),
        ("model.cell=..own_parts:Open", '"..own_parts:Open": expected package.module:Class'),
        ("model.cell=own_parts:", '"own_parts:": expected package.module:Class'),
        ("model.cell=own_parts:Gone", "the module own_parts has no Gone"),
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
        ({"cell": eq.ContractiveCell}, r"model\.cell.*expected a section"),
        ({"depth": 5}, r"model\.depth.*expected a section"),
        ({"memory_length": 2.5}, r"memory_length = 2\.5: expected an integer"),
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
