"""Imports go one way. The order is the design's; where that is silent, it is decided here."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[1] / "src" / "equilibria"

DIRECTLY_ABOVE = {
    "errors": (),
    "ranges": (),
    "files": (),
    "devices": (),
    "distributed": ("devices",),
    "runs": ("files", "distributed"),
    "solvers": ("devices",),
    "gradients": ("solvers",),
    "deq": ("gradients",),
    "diagnostics": ("deq",),
    "nn": ("devices",),
    "penalties": ("gradients",),
    "cells": ("nn",),
    "depths": ("deq", "penalties", "cells"),  # a depth says what cell is applied
    "models": ("depths", "diagnostics"),
    "data": ("files",),
    "optimization": ("models",),  # parameters are sorted by what they are in a model
    "configuration": ("optimization", "data"),  # it is made of their objects
    "inference": ("configuration", "runs"),  # a run is loaded through its recipe
    "training": ("inference",),  # it evaluates as it goes
    "interop": ("training",),
    "serving": ("inference",),
    "report": ("measuring",),
    "measuring": ("training",),  # steps and evaluations are timed as they are made
    "sweep": ("training",),
    "machine": ("measuring",),
    "paper": ("measuring",),  # uses what an outsider could use; nothing but the command line knows it
    "cli": ("interop", "report", "serving", "sweep", "machine", "paper"),
    "__init__": ("interop", "measuring", "report"),  # the public names: of anything but the command line
    "__main__": ("cli",),
}
"""Each part of the package, and the parts it stands on; it may import those and all below them."""

FOREIGN = {"solvers": ("torch.nn",)}
"""Modules of others that a part may not import."""


def below(part: str) -> set[str]:
    """All parts that `part` may import, itself, errors and ranges included."""
    return {part, "errors", "ranges"}.union(*(below(other) for other in DIRECTLY_ABOVE[part]))


def imported(module: Path, root: Path) -> Iterator[str]:
    """The full names of everything a module imports, wherever in the file, relative imports resolved."""
    package = ("equilibria", *module.relative_to(root).parent.parts)
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            source = ".".join((*base, *filter(None, [node.module])))
            yield from (f"{source}.{alias.name}" for alias in node.names)


def violations(root: Path) -> list[str]:
    """Every import that goes the wrong way, as `module imports name`."""
    found = []
    for module in sorted(root.rglob("*.py")):
        name = module.relative_to(root)
        part = name.parts[0].removesuffix(".py")
        if part not in DIRECTLY_ABOVE:
            found.append(f"{name} is in no layer; give it a place in {Path(__file__).name}")
            continue
        allowed, foreign = below(part), FOREIGN.get(part, ())
        for target in imported(module, root):
            head, *rest = target.split(".")
            wrong = head == "equilibria" and (not rest or rest[0] not in allowed)
            if wrong or any(f"{target}.".startswith(f"{other}.") for other in foreign):
                found.append(f"{name} imports {target}")
    return found


def test_imports_go_one_way() -> None:
    assert violations(SOURCES) == []


def test_every_module_is_seen() -> None:
    assert {path.name for path in SOURCES.iterdir()} >= {"solvers", "nn", "data", "cli"}
    assert sum(1 for _ in SOURCES.rglob("*.py")) > 40


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("solvers/picard.py", "import equilibria.gradients"),
        ("solvers/picard.py", "from equilibria import gradients"),
        ("solvers/picard.py", "from ..gradients import Implicit"),
        ("solvers/picard.py", "from .. import gradients"),
        ("solvers/picard.py", "def late():\n    from equilibria.gradients import Implicit"),
        ("solvers/picard.py", "import torch.nn.functional"),
        ("solvers/picard.py", "from torch import nn"),
        ("nn/attention.py", "from equilibria.depths import Depth"),
        ("data/corpus.py", "from equilibria.configuration import Recipe"),
        ("inference/evaluation.py", "from equilibria.training.trainer import Trainer"),
        ("report/page.py", "from equilibria.cli.app import main"),
        ("cells/base.py", "import equilibria"),
        ("novelty/base.py", "import torch"),
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, module: str, line: str) -> None:
    (tmp_path / module).parent.mkdir()
    (tmp_path / module).write_text(line + "\n", encoding="utf-8")
    assert len(violations(tmp_path)) == 1


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("solvers/picard.py", "from equilibria.errors import UserError"),
        ("solvers/picard.py", "import torch"),
        ("solvers/picard.py", "from . import base"),
        ("training/trainer.py", "from equilibria.solvers import Status"),
        ("nn/attention.py", "from torch import nn"),
    ],
)
def test_a_right_import_is_not(tmp_path: Path, module: str, line: str) -> None:
    (tmp_path / module).parent.mkdir()
    (tmp_path / module).write_text(line + "\n", encoding="utf-8")
    assert violations(tmp_path) == []
