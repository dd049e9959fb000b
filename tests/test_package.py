"""The names that `import equilibria as eq` offers."""

import ast
import subprocess
import sys
from importlib import import_module, metadata
from pathlib import Path

import pytest

import equilibria as eq
from processes import environment


def fresh(program: str) -> str:
    """What a program prints in a process of its own."""
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=True).stdout


def test_all_names_are_shown_and_found() -> None:
    names: list[str] = vars(eq)["__getattr__"]("__all__")
    assert {"fixed_point", "DEQ", "Solver", "Gradient", "load"} <= set(names) < set(dir(eq))
    assert len(names) == len(set(names))
    assert all(getattr(eq, name) is not None for name in names)


def test_a_public_name_is_that_of_its_package() -> None:
    for package in vars(eq)["_PACKAGES"]:
        module = import_module(f"equilibria.{package}")
        assert all(getattr(eq, name) is getattr(module, name) for name in module.__all__)


def test_type_checkers_see_the_same_packages() -> None:
    tree = ast.parse(Path(str(eq.__file__)).read_text())
    starred = {part.module for part in ast.walk(tree) if isinstance(part, ast.ImportFrom) and part.names[0].name == "*"}
    assert starred == {f"equilibria.{package}" for package in vars(eq)["_PACKAGES"]}


def test_the_version_is_that_of_the_installed_package() -> None:
    assert eq.__version__ == metadata.version("equilibria")


@pytest.mark.parametrize("name", ["nothing", "_nothing"])
def test_an_unknown_name_is_an_error(name: str) -> None:
    with pytest.raises(AttributeError, match=f"module 'equilibria' has no attribute '{name}'"):
        getattr(eq, name)


def test_a_name_imports_what_is_below_it_alone() -> None:
    program = "import sys, equilibria as eq; {0}; print(*(m for m in sys.modules if m in {1}))"
    heavy = {"torch", "equilibria.solvers", "equilibria.gradients", "equilibria.inference"}
    assert fresh(program.format("pass", heavy)) == "\n"
    assert fresh(program.format("from equilibria import errors", heavy)) == "\n"
    assert set(fresh(program.format("eq.Anderson", heavy)).split()) == {"torch", "equilibria.solvers"}


def test_all_can_be_imported_at_once() -> None:
    assert "fixed_point" in fresh("from equilibria import *; print(fixed_point, Anderson, load)")
