"""`equilibria demo state-tracking`."""

import json as json_format
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from itertools import count, pairwise
from pathlib import Path

import numpy as np
import torch
from rich.table import Table

from equilibria.cli.output import go_on_unheard
from equilibria.cli.progress import ConsoleProgress, progress_console
from equilibria.cli.settings import Settings, check_flags
from equilibria.cli.train import exit_code
from equilibria.configuration import Recipe, RunRecipe, read_recipe
from equilibria.data import WordProblem
from equilibria.data.batches import Segment
from equilibria.depths import Depth, UnrolledDepth
from equilibria.errors import UserError
from equilibria.files.durable import save_text
from equilibria.inference.loading import load_run
from equilibria.models import TokenModel
from equilibria.models.recipe import LanguageModelRecipe
from equilibria.training import train

_LENGTH, _WORDS = 1000, 16
_EXPLICIT = UnrolledDepth(24)
"""As many applications as training evaluates the cell of the equilibrium."""


@dataclass(frozen=True)
class Followed:
    """How a model followed words, decoded from left to right.

    Attributes:
        right_BL: where its answer was right, `(words, length)` booleans.
        evaluations_L: per token, means over the words; nothing where nothing was solved.
        unconverged: tokens whose solve did not converge.
    """

    right_BL: np.ndarray
    evaluations_L: np.ndarray
    unconverged: int


def state_tracking(*flags: Settings, json: bool = False) -> int:
    """Train an equilibrium to follow a state through 16 steps, and see it follow 1,000.

    Beside it the same cell, with as many weights, applied a fixed number of times. The task is to read permutations of
    three things and to give the product so far after each. The recipe is state-tracking/s3-trellisnet.toml.

    Args:
        flags: flags of `equilibria train`, for both; those of model.depth for the equilibrium alone.
        json: print the figures as one JSON object on stdout; progress goes to stderr.
    """
    check_flags(state_tracking, flags)
    if own := [flag for flag in flags if flag.startswith("--run.")]:
        raise UserError(f"{own[0]}: the demo chooses where its two runs are; leave it out")
    go_on_unheard()
    console = progress_console(json)
    folder = _free_folder()
    followed, task = {}, None
    for name, depth in (("equilibrium", None), (f"{_EXPLICIT.applications} applications", _EXPLICIT)):
        recipe = _recipe(folder / name.replace(" ", "-"), depth, flags)
        console.print(f"\ntraining: {name}", highlight=False)
        result = train(recipe, console=console, progress=ConsoleProgress(console))
        if result.interrupted is not None:
            console.print(f"the demo would start anew; equilibria train {result.folder} --resume goes on with this run")
            return exit_code(result)
        loaded = load_run(result.folder)
        assert isinstance(loaded.recipe.data, WordProblem)
        task = loaded.recipe.data
        words = replace(task, valid_length=_LENGTH, held_out=_WORDS)
        console.print(f"reading {_WORDS} words of {_LENGTH:,}, token by token", highlight=False)
        followed[name] = follow(loaded.model, next(iter(words.split("valid").segments(_WORDS))))
    picture = folder / "accuracy.svg"
    assert task is not None
    _draw(followed, task, picture)
    if json:
        figures = {name: _figures(one) for name, one in followed.items()}
        print(json_format.dumps({**figures, "folder": str(folder), "picture": str(picture)}))
    else:
        console.print(_table(followed, task.length))
        console.print(f"picture: {picture}")
    return 0


def _free_folder() -> Path:
    folders = (Path("runs", f"state-tracking-{number}") for number in count(1))
    return next(folder for folder in folders if not folder.exists())


def _recipe(folder: Path, depth: Depth | None, flags: Sequence[str]) -> Recipe:
    """The demo's recipe for a folder, at another depth than its own where one is given."""
    recipe = read_recipe("state-tracking/s3-trellisnet", flags, RunRecipe(name=folder.name, directory=folder.parent))
    if not isinstance(recipe.data, WordProblem):
        raise UserError("the demo of state tracking is about words of a group; leave --data.source out")
    if depth is None or not isinstance(recipe.model, LanguageModelRecipe):
        return recipe
    return replace(recipe, model=replace(recipe.model, depth=depth))


@torch.no_grad()
def follow(model: TokenModel, words: Segment) -> Followed:
    """Decode words token by token from a cache."""
    model.eval()
    right, evaluations, unconverged, step = [], [], 0, None
    for place, token_B in enumerate(words.inputs.unbind(1)):
        step = model.prefill(token_B.unsqueeze(1)) if step is None else model.decode(token_B, step.cache)
        right.append(step.logits_BV.argmax(dim=-1) == words.targets[:, place])
        if step.solution is not None:
            evaluations.append(float(step.solution.group_evaluations.float().mean()))
            unconverged += int((~step.solution.converged).sum())
    return Followed(torch.stack(right, dim=1).numpy(), np.array(evaluations), unconverged)


def _figures(followed: Followed) -> dict[str, object]:
    spent = followed.evaluations_L
    return {
        "accuracy": float(followed.right_BL.mean()),
        "last_accuracy": float(followed.right_BL[:, -1].mean()),
        "whole_words": int(followed.right_BL.all(axis=1).sum()),
        "evaluations": None if not spent.size else {"mean": float(spent.mean()), "most": float(spent.max())},
        "unconverged": followed.unconverged,
    }


def _table(followed: Mapping[str, Followed], trained: int) -> Table:
    """A column for each model: right answers by position."""
    table = Table(title="right answers by position")
    table.add_column()
    for name in followed:
        table.add_column(name, justify="right")
    ends = sorted({0, trained, *(2 * trained, 4 * trained, 16 * trained), _LENGTH})
    for first, end in pairwise(end for end in ends if end <= _LENGTH):
        shares = (f"{one.right_BL[:, first:end].mean():.1%}" for one in followed.values())
        table.add_row(f"{first + 1} to {end:,}" + (" (as in training)" if not first else ""), *shares)
    whole = (f"{one.right_BL.all(axis=1).sum()} of {len(one.right_BL)}" for one in followed.values())
    table.add_row("whole words", *whole)
    spent = (
        f"{one.evaluations_L.mean():.1f}" if one.evaluations_L.size else str(_EXPLICIT.applications)
        for one in followed.values()
    )
    table.add_row("evaluations per element, mean", *spent)
    return table


def _draw(followed: Mapping[str, Followed], task: WordProblem, path: Path) -> None:
    """Draw right answers against the position, means of 16 neighbours."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    axes = figure.subplots()
    for name, one in followed.items():
        share = one.right_BL.mean(axis=0)
        window = np.convolve(share, np.full(16, 1 / 16), mode="valid")
        axes.plot(np.arange(16, len(share) + 1), window, label=name)
    axes.axvline(task.length, color="grey", linewidth=1, linestyle=":")
    axes.annotate(" length in training", (task.length, 0.03), color="grey", fontsize=8)
    axes.axhline(1 / task.vocabulary_size, color="grey", linewidth=1, linestyle="--", label="chance")
    axes.set(xlabel="position", ylabel="right answers", ylim=(0, 1.05), xlim=(0, _LENGTH))
    axes.set_title(task.name, loc="left", fontsize=10)
    axes.legend(loc="center right")
    axes.grid(alpha=0.3)
    buffer = StringIO()
    figure.savefig(buffer, format="svg")
    save_text(path, buffer.getvalue())
