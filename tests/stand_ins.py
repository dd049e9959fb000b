"""Tables like the paper's, of the smallest models: trained in seconds, from recipe files in a checkout of their own."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from equilibria.configuration import Recipe, write_recipe
from equilibria.data import CopyMemory
from equilibria.depths import Equilibrium, UnrolledDepth
from equilibria.gradients import Implicit
from equilibria.paper.baselines import LSTM
from equilibria.paper.tables import Contest, MeasuredTable, Row, Scale, Setting, TrainedTable
from tiny import tiny_recipe, with_model

EQUILIBRIUM = Row(
    name="equilibrium",
    model="An equilibrium model",
    recipe="equilibrium",
    scales={"small": ("--model.cell.d_model", "24")},
    parameters=7e3,
    inner=2.5e3,
    figure=42.0,
    gigabytes=1.0,
)
EXPLICIT = Row(name="explicit", model="An explicit model", recipe="explicit", figure=43.0, gigabytes=4.0)

TEXT = TrainedTable(
    name="ptb",
    title="Perplexities of a text",
    figure="perplexity",
    vocabulary_size=300,
    rows=(EXPLICIT, EQUILIBRIUM),
    scales={"tiny": ("--training.steps", "6"), "small": ("--training.steps", "9")},
    test_tokens={"tiny": 100},
    data="put a text there",
)
TASK = TrainedTable(
    name="copy-memory",
    title="Losses of a task",
    figure="loss",
    vocabulary_size=10,
    rows=(Row(name="lstm", model="LSTM", recipe="lstm", figure=0.05),),
)
CONTEST = Contest(table=TEXT, rows=(EXPLICIT, EQUILIBRIUM), training=2.0, inference=1.5)
SETTING = Setting(batch_size=2, segment_length=12, rounds=3)
SETTINGS: Mapping[Scale, Setting] = {"tiny": SETTING, "full": SETTING}
MEMORY = MeasuredTable(name="memory", title="Memories", contests=(CONTEST,), settings=SETTINGS)
RUNTIME = MeasuredTable(name="runtime", title="Times", contests=(CONTEST,), settings=SETTINGS)


def equilibrium_recipe(base: Path) -> Recipe:
    """One that solves, and remembers one evaluation."""
    return with_model(tiny_recipe(base), depth=Equilibrium(gradient=Implicit()))


def explicit_recipe(base: Path) -> Recipe:
    """Its twin, which remembers eight."""
    return with_model(tiny_recipe(base), depth=UnrolledDepth(8))


def task_recipe(base: Path) -> Recipe:
    """An LSTM on a short copy memory."""
    recipe = tiny_recipe(base)
    return replace(
        recipe,
        data=CopyMemory(blanks=5, symbols=2, held_out=10),
        model=LSTM(d_model=8, hidden=8),
    )


def write_checkout(base: Path) -> Path:
    """A folder with the text and the recipes; returns that of the text's recipes."""
    recipes = {
        "ptb/equilibrium": equilibrium_recipe(base),
        "ptb/explicit": explicit_recipe(base),
        "copy-memory/lstm": task_recipe(base),
    }
    for name, recipe in recipes.items():
        file = base / "recipes" / f"{name}.toml"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_recipe(recipe, file)
    return base / "recipes" / "ptb"
