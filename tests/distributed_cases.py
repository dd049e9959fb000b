"""What processes of a distributed test do; see `processes`."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from equilibria.cells import ContractiveCell
from equilibria.configuration import TrainingRecipe, read_recipe
from equilibria.data import CopyMemory
from equilibria.data.batches import TrainingStream
from equilibria.depths import Depth, Equilibrium, UnrolledDepth
from equilibria.distributed import World, joined, seed_process
from equilibria.errors import UserError
from equilibria.gradients import Implicit, Phantom
from equilibria.inference.evaluation import evaluate_segments
from equilibria.models import LanguageModel, TokenModel
from equilibria.nn import AdaptiveEmbedding, TiedEmbedding, UntiedEmbedding
from equilibria.optimization import SGD, Exponential, Muon
from equilibria.paper.baselines import LSTMLayer, SequenceModel
from equilibria.runs.checkpoints import read_checkpoint, save_checkpoint
from equilibria.runs.folder import RunFolder
from equilibria.solvers import GMRES, Picard, Solver
from equilibria.training import train
from equilibria.training.loop import TrainingLoop
from equilibria.training.parallel import Strategy, full_tensor
from tiny import TRAINING

TOKENS = np.random.default_rng(0).integers(0, 31, 700).astype(np.uint16)
RECIPE = replace(TRAINING, steps=8, batch_size=4, learning_rate=1e-3)
SOLVER = Picard(tol=1e-3, max_evaluations=30, scope="prefix")
IMPLICIT = Equilibrium(SOLVER, Implicit(), SOLVER, residual_penalty=0.5)
PHANTOM = Equilibrium(replace(SOLVER, max_evaluations=5), Phantom(steps=2, checkpoint=True), SOLVER)


def language_model(depth: Depth, adaptive: bool = False, dropout: float = 0.0) -> LanguageModel:
    """Without dropout, the masks of other processes do not matter."""
    embedding = AdaptiveEmbedding(31, 16, cutoffs=(20,), div_val=2) if adaptive else TiedEmbedding(31, 16)
    cell = ContractiveCell(d_model=16, heads=2, inner=32, dropout=dropout, carry=0.3)
    return LanguageModel(embedding, cell, depth, memory_length=8, dropout=dropout)


def variants() -> dict[str, tuple[TrainingRecipe, TokenModel]]:
    """Models and recipes that meet what may go wrong; freshly seeded."""
    torch.manual_seed(5)
    baseline = SequenceModel(UntiedEmbedding(10, 8, 12), [LSTMLayer(8, 12)])
    return {
        "implicit": (RECIPE, language_model(IMPLICIT)),
        "slots": (replace(RECIPE, accumulation=2, averaging=Exponential()), language_model(PHANTOM, adaptive=True)),
        "rounds": (replace(RECIPE, steps=4, accumulation=2), language_model(replace(PHANTOM, rounds=2))),
        "lowered": (replace(RECIPE, steps=3, precision="bfloat16"), language_model(IMPLICIT)),
        "muon": (replace(RECIPE, steps=4, optimizer=Muon()), language_model(UnrolledDepth(2))),
        "baseline": (replace(RECIPE, optimizer=SGD(momentum=0.9), learning_rate=0.1), baseline),
    }


def build(recipe: TrainingRecipe, model: TokenModel, world: World, strategy: Strategy) -> TrainingLoop:
    """A loop over random tokens, or over copy memory for what remembers nothing."""
    rows = recipe.batch_size * recipe.accumulation
    task = CopyMemory(blanks=4, symbols=3, held_out=100)
    text = isinstance(model, LanguageModel)
    batches = TrainingStream(TOKENS, rows, recipe.segment_length) if text else task.training(rows)
    return TrainingLoop(model, recipe, batches, world=world, strategy=strategy)


def strategies(world: World) -> tuple[Strategy, ...]:
    """Those that differ for so many processes."""
    return ("ddp", "fsdp2") if world.size > 1 else ("ddp",)


def weights(loop: TrainingLoop, prefix: str) -> dict[str, Tensor]:
    """Of what would be evaluated, whole."""
    return {f"{prefix}.{name}": full_tensor(part.detach()).clone() for name, part in loop.evaluated.named_parameters()}


def agreement(folder: Path) -> dict[str, Tensor]:
    """Losses of some steps, the weights after them, and what they evaluate to, of every variant by every strategy."""
    found: dict[str, Tensor] = {}
    with joined("cpu") as world:
        for strategy in strategies(world):
            for name, (recipe, model) in variants().items():
                loop, key = build(recipe, model, world, strategy), f"{strategy}/{name}"
                found[f"{key}/loss"] = torch.stack([loop.step() for _ in range(recipe.steps)])
                found |= weights(loop, f"{key}/weight")
                summary = loop.statistics.summary()
                assert summary is not None
                found[f"{key}/tokens"] = torch.tensor(float(summary.tokens))
                segments = [TrainingStream(TOKENS[:200], 3, 16).at(index) for index in range(3)]
                if isinstance(model, LanguageModel):
                    with loop.gathered():
                        result = evaluate_segments(loop.evaluated, segments, world=world)
                    found[f"{key}/evaluation"] = torch.tensor([result.loss, result.tokens, result.residual.p95 or 0.0])
    return found


class Watch(TorchDispatchMode):
    """Counts the collectives that are started, and those among them that are started inside a solve."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model
        self.depth, self.gathers, self.scatters, self.inside, self.solves, self.evaluations = 0, 0, 0, 0, 0, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "c10d":
            self.inside += bool(self.depth)
            self.gathers += "allgather_base" in str(function)
            self.scatters += "reduce_scatter" in str(function)
        return function(*args, **(kwargs or {}))

    @contextmanager
    def solving(self) -> Iterator[None]:
        """While a solver works; the cell's weights are whole and there."""
        weight = self.model.cell.get_parameter("norm.weight")
        assert not isinstance(weight, DTensor)
        assert weight.untyped_storage().size() == weight.nbytes
        self.depth += 1
        self.solves += 1
        yield
        self.depth -= 1


def watched(kind: type[Solver] | type[GMRES], watch: Watch) -> None:
    """Tells the watch whenever a solver of that kind works."""
    solve = kind.solve

    def telling(*args: Any, **kwargs: Any) -> Any:
        with watch.solving():
            found = solve(*args, **kwargs)
        watch.evaluations += found.evaluations
        return found

    kind.solve = telling  # for as long as this process lives


def alone_in_solves(folder: Path) -> dict[str, Tensor]:
    """Evaluations in every step of every strategy, and the collectives of those steps."""
    found: dict[str, Tensor] = {}
    with joined("cpu") as world:
        for strategy in strategies(world):
            torch.manual_seed(5)
            # One process has an easy text: one token alone. Its solves end earlier than the others'.
            tokens = np.where(np.arange(700) < 175, 3, TOKENS)
            model = language_model(IMPLICIT)
            recipe = replace(RECIPE, accumulation=1)
            stream = TrainingStream(tokens, 4, 16)
            loop = TrainingLoop(model, recipe, stream, world=world, strategy=strategy)
            watch = Watch(model)
            watched(Solver, watch)
            watched(GMRES, watch)
            with watch:
                for _ in range(6):
                    loop.step()
            counts = [watch.inside, watch.gathers, watch.scatters, watch.solves]
            found[f"{strategy}/counts"] = torch.tensor(counts)
            found[f"{strategy}/evaluations"] = torch.tensor(watch.evaluations)
    return found


def _resumable(world: World, strategy: Strategy, dropout: float) -> TrainingLoop:
    torch.manual_seed(5)
    model = language_model(PHANTOM, dropout=dropout)
    recipe = replace(RECIPE, accumulation=2, averaging=Exponential(decay=0.5))
    loop = build(recipe, model, world, strategy)
    seed_process(3, world)
    return loop


def saved(folder: Path) -> dict[str, Tensor]:
    """Three steps, a checkpoint, three steps more, by each strategy, with and without dropout."""
    found: dict[str, Tensor] = {}
    with joined("cpu") as world:
        for strategy in strategies(world):
            for dropout in (0.0, 0.2):
                loop, name = _resumable(world, strategy, dropout), f"{strategy}-{dropout}"
                for _ in range(3):
                    loop.step()
                run = RunFolder(folder / name)
                if world.main:
                    run.path.mkdir()
                save_checkpoint(run, loop.done, loop.weights(), loop.checkpoint(), best=True, world=world)
                for _ in range(3):
                    loop.step()
                found |= weights(loop, name)
    return found


def resumed(folder: Path) -> dict[str, Tensor]:
    """Three steps more from each of the checkpoints there, by each strategy."""
    found: dict[str, Tensor] = {}
    with joined("cpu") as world:
        for strategy in strategies(world):
            for path in sorted(folder.glob("*-0.*/checkpoints/step-3")):
                name = path.parents[1].name
                loop = _resumable(world, strategy, float(name.partition("-")[2]))
                loop.restore(read_checkpoint(path, loop.layout, world), path)
                for _ in range(3):
                    loop.step()
                found |= weights(loop, f"{strategy}/{name}")
    return found


def full_disk(folder: Path) -> dict[str, Tensor]:
    """The second process cannot write its part of a checkpoint: all say so, and the one before stays."""
    with joined("cpu") as world:
        run, loop = RunFolder(folder / "full"), _resumable(world, "fsdp2", 0.0)
        if world.main:
            run.path.mkdir()
        loop.step()
        save_checkpoint(run, 1, loop.weights(), loop.checkpoint(), best=False, world=world)
        loop.step()
        checkpoint = loop.checkpoint()
        if world.rank == world.size - 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        with pytest.raises(UserError, match=r"File too large.*step-1 stays"):
            save_checkpoint(run, 2, loop.weights(), checkpoint, best=False, world=world)
        world.broadcast(None)
        present = sorted(entry.name for entry in run.checkpoints.iterdir())
        assert present == ["index.json", "step-1"], present
        read_checkpoint(run.checkpoint("last"), loop.layout, world)
    return {"saved": torch.tensor(1)}


def skipping(folder: Path) -> dict[str, Tensor]:
    """A gradient of one process, in one step, is NaN: no process takes that step, and all go on."""
    found: dict[str, Tensor] = {}
    with joined("cpu") as world:
        for strategy in strategies(world):
            loop = _resumable(world, strategy, 0.0)
            broken = world.rank == world.size - 1

            def poison(module: Any, args: Any, result: Any, broken: bool = broken, loop: TrainingLoop = loop) -> Any:
                return result * float("nan") if broken and loop.done == 2 else result

            loop.model.embedding.register_forward_hook(poison)  # pyright: ignore[reportAttributeAccessIssue]
            loop.step()
            loop.step()
            before = weights(loop, "")
            loop.step()
            assert (loop.skipped, loop.skipped_in_a_row) == (1, 1)
            assert all(torch.equal(part, before[name]) for name, part in weights(loop, "").items())
            loop.step()
            assert (loop.skipped, loop.skipped_in_a_row, loop.done) == (1, 0, 4)
            summary = loop.statistics.summary()
            assert summary is not None
            assert (summary.steps, summary.skipped) == (3, 1)
            assert loop.finite
            found |= weights(loop, strategy)
    return found


def trained(folder: Path, file: str = "recipe.toml") -> dict[str, Tensor]:
    """The run of a recipe, by the command's own function; goes on where there is one already."""
    recipe = read_recipe(folder / file)
    resume = (recipe.run.folder / "config.toml").is_file()
    result = train(recipe, resume=resume)
    return {"step": torch.tensor(result.step)}


def trained_undisturbed(folder: Path) -> dict[str, Tensor]:
    """The run of `undisturbed.toml`."""
    return trained(folder, "undisturbed.toml")
