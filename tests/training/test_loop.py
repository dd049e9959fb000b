from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from equilibria.cells import Cache, ContractiveCell, Memory, StackedCell
from equilibria.configuration import TrainingRecipe
from equilibria.data import CopyMemory
from equilibria.data.batches import TrainingStream
from equilibria.depths import (
    Depth,
    DepthSchedule,
    Equilibrium,
    GrowingLimits,
    JacobianPenalty,
    PathNoise,
    RandomLimits,
    RandomStart,
    Reached,
    UnrolledDepth,
)
from equilibria.errors import UserError
from equilibria.gradients import Phantom, Unrolled
from equilibria.inference.evaluation import evaluate_segments
from equilibria.models import LanguageModel, Output
from equilibria.nn import TiedEmbedding, UntiedEmbedding
from equilibria.optimization import (
    SGD,
    Adam,
    AdamW,
    Averaging,
    Constant,
    Exponential,
    InverseSquareRoot,
    Linear,
    Muon,
    Optimizer,
    RAdam,
    WarmupStableDecay,
)
from equilibria.paper.baselines import LSTMLayer, SequenceModel
from equilibria.paper.halting import Halting
from equilibria.solvers import Picard
from equilibria.training.loop import TrainingLoop
from layers import AveragingLayer
from tiny import TRAINING

TOKENS = np.random.default_rng(0).integers(0, 31, 700).astype(np.uint16)


def loop(
    recipe: TrainingRecipe = TRAINING,
    dropout: float = 0.0,
    width: int = 16,
    depth: Depth | None = None,
    schedule: DepthSchedule | None = None,
    framed: bool = False,
) -> TrainingLoop:
    torch.manual_seed(recipe.seed)
    cell = ContractiveCell(d_model=width, heads=2, inner=32, dropout=dropout)
    solver = Picard(tol=1e-6, max_evaluations=4, scope="prefix")
    usual = Equilibrium(solver=solver, eval_solver=solver, gradient=Phantom(steps=2), schedule=schedule)
    depth = depth or usual
    batches = TrainingStream(TOKENS, recipe.batch_size * recipe.accumulation, recipe.segment_length)
    embedding = TiedEmbedding(31, width)
    if not framed:
        return TrainingLoop(LanguageModel(embedding, cell, depth, memory_length=8), recipe, batches)
    around = [StackedCell([AveragingLayer(width, dropout=dropout) for _ in range(2)]) for _ in range(2)]
    model = LanguageModel(
        embedding,
        cell,
        depth,
        memory_length=8,
        dropout=dropout,
        prelude=around[0],
        coda=around[1],
        chunk_length=5,
        auxiliary_weight=0.2,
    )
    return TrainingLoop(model, recipe, batches)


def weights(trained: TrainingLoop) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trained.model.parameters()])


@pytest.mark.parametrize(
    ("optimizer", "learning_rate"), [(AdamW(), 3e-3), (Adam(), 3e-3), (RAdam(), 3e-2), (SGD(), 1.0), (Muon(), 3e-3)]
)
def test_learns(optimizer: Optimizer, learning_rate: float) -> None:
    learning = loop(replace(TRAINING, steps=60, optimizer=optimizer, learning_rate=learning_rate))
    losses = [float(learning.step()) for _ in range(60)]
    assert learning.done == 60
    assert losses[-1] < losses[0] - 0.05


def test_slots_are_the_step_of_a_batch_as_large_as_all() -> None:
    whole = loop(replace(TRAINING, batch_size=4, accumulation=1))
    parts = loop(replace(TRAINING, batch_size=2, accumulation=2))
    for _ in range(4):  # the second step on, memory of the micro-batches matters
        assert float(whole.step()) == pytest.approx(float(parts.step()), abs=1e-5)
    torch.testing.assert_close(weights(whole), weights(parts), atol=1e-4, rtol=0)


def test_memory_flows_within_a_pass_and_is_dropped_at_its_end() -> None:
    learning = loop()
    seen: list[bool] = []
    forward = learning.model.forward

    def spy(
        tokens_BL: Tensor, targets: Tensor | None = None, memory: Memory | Cache | None = None, **options: Any
    ) -> Output:
        seen.append(memory is not None)
        return forward(tokens_BL, targets, memory, **options)

    learning.model.forward = spy
    length = len(TrainingStream(TOKENS, TRAINING.batch_size, TRAINING.segment_length))
    for _ in range(length + 2):
        learning.step()
    assert seen == [False, *[True] * (length - 1), False, True]


def test_gradients_are_clipped() -> None:
    free, clipped = loop(), loop(replace(TRAINING, clip=1e-12))
    before = weights(clipped)
    free.step()
    clipped.step()
    summary = clipped.statistics.summary()
    assert summary is not None
    assert (summary.gradient_norm or 0) > 1e-3  # as it was before clipping
    moved = (weights(clipped) - before).abs().max()  # what is left moves Adam by less than its epsilon allows
    assert moved < (weights(free) - before).abs().max() / 10


def interrupted_and_not(build: Callable[[TrainingRecipe], TrainingLoop], recipe: TrainingRecipe) -> list[TrainingLoop]:
    """Six steps undisturbed, and three steps, a checkpoint and three more by a loop that was built anew."""
    undisturbed, interrupted = build(recipe), build(recipe)
    torch.manual_seed(1)
    for _ in range(6):
        undisturbed.step()
    torch.manual_seed(1)
    for _ in range(3):
        interrupted.step()
    saved = interrupted.checkpoint()
    saved = replace(saved, trainer={name: tensor.detach().clone() for name, tensor in saved.trainer.items()})
    resumed = build(replace(recipe, seed=99))
    resumed.recipe = recipe  # other weights and draws, but the limits and penalties are those of the run's seed
    resumed.restore(saved, Path("step-3"))
    assert resumed.learning_rate == interrupted.learning_rate
    for _ in range(3):
        resumed.step()
    return [undisturbed, resumed]


OPTIMIZERS = {
    "adamw": TRAINING,
    "adam": replace(TRAINING, optimizer=Adam(), schedule=Linear(warmup_steps=2)),
    "radam": replace(TRAINING, optimizer=RAdam(), schedule=InverseSquareRoot(warmup_steps=2)),
    "sgd": replace(TRAINING, optimizer=SGD(momentum=0.9), schedule=Constant(warmup_steps=2)),
    "muon": replace(TRAINING, optimizer=Muon(), schedule=WarmupStableDecay(warmup_steps=2)),
}


@pytest.mark.parametrize("depth", [None, UnrolledDepth(applications=2)])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_restored_goes_on_bit_for_bit(optimizer: str, accumulation: int, depth: Depth | None) -> None:
    recipe = replace(OPTIMIZERS[optimizer], accumulation=accumulation)
    undisturbed, resumed = interrupted_and_not(lambda recipe: loop(recipe, dropout=0.2, depth=depth), recipe)
    assert torch.equal(weights(resumed), weights(undisturbed))
    assert resumed.statistics.summary() == undisturbed.statistics.summary()


SCHEDULES = {
    "warm-up": Equilibrium(schedule=DepthSchedule(warmup_steps=4)),
    "random limits and a Jacobian penalty": Equilibrium(
        states_every=2,
        schedule=DepthSchedule(limits=RandomLimits(2, 6), jacobian=JacobianPenalty(0.1, 1.0, probability=0.5)),
    ),
    "random starts, noise and rounds": Equilibrium(
        solver=Picard(tol=1e-3, max_evaluations=4, scope="prefix"),
        start=RandomStart(share=0.5),
        noise=PathNoise(0.05),
        rounds=3,
        schedule=DepthSchedule(gradient_steps=GrowingLimits(1, 3)),
    ),
    "growing limits": Equilibrium(schedule=DepthSchedule(warmup_steps=1, limits=GrowingLimits(1, 7))),
}


@pytest.mark.parametrize("scheduled", [None, *SCHEDULES.values()], ids=["halting", *SCHEDULES.keys()])
@pytest.mark.parametrize("framed", [False, True])
def test_restored_goes_on_bit_for_bit_whatever_the_frame_and_the_schedule(
    framed: bool, scheduled: Equilibrium | None
) -> None:
    def build(recipe: TrainingRecipe) -> TrainingLoop:
        torch.manual_seed(recipe.seed)
        depth = Halting(16, max_steps=3) if scheduled is None else scheduled
        return loop(recipe, dropout=0.2, depth=depth, framed=framed)

    recipe = replace(TRAINING, steps=6, accumulation=2)
    undisturbed, resumed = interrupted_and_not(build, recipe)
    assert torch.equal(weights(resumed), weights(undisturbed))
    assert resumed.statistics.summary() == undisturbed.statistics.summary()


def test_each_step_is_taken_at_the_depth_that_the_schedule_says() -> None:
    depth = Equilibrium(schedule=DepthSchedule(warmup_steps=2, limits=RandomLimits(2, 9)))
    learning, seen, called = loop(replace(TRAINING, steps=8), depth=depth), [], []
    learning.model.register_forward_pre_hook(lambda _, given, named: called.append(named["depth"]), with_kwargs=True)
    for _ in range(8):
        learning.step()
        seen.append(learning.depth)
    assert seen == called == [depth.at(step, 8, TRAINING.seed) for step in range(8)]
    assert isinstance(learning.model, LanguageModel)
    assert learning.model.depth is depth
    assert len({depth.solver.max_evaluations for depth in seen if isinstance(depth, Equilibrium)}) > 2


class Cut(Depth):
    """A cell applied again and again: the state after every so many applications, cut from the graph there."""

    def __init__(self, applications: int, every: int) -> None:
        self.applications, self.every = applications, every

    def reach(self, f: Callable[[Tensor], Tensor], z0: Tensor, training: bool) -> Reached:
        z, states = z0, []
        for number in range(1, self.applications + 1):
            z = f(z)
            if number % self.every == 0:
                states.append(z)
                z = z.detach()
        return Reached(states[-1], states=tuple(states[:-1]))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_rounds_are_one_solve_with_a_loss_after_each_and_a_gradient_that_ends_there(accumulation: int) -> None:
    recipe = replace(TRAINING, optimizer=SGD(), learning_rate=0.5, accumulation=accumulation, clip=1e6)
    solver = Picard(max_evaluations=1, scope="prefix")
    inner = Equilibrium(solver=solver, gradient=Unrolled(steps=2), residual_penalty=0.0, rounds=3)
    in_rounds = loop(recipe, depth=inner)
    # One loss and twice the mean of two others are three times the mean of all.
    whole = loop(replace(recipe, learning_rate=recipe.learning_rate / 3), depth=Cut(6, every=2))
    assert isinstance(whole.model, LanguageModel)
    whole.model.auxiliary_weight = 2.0
    for _ in range(3):
        assert float(in_rounds.step()) == pytest.approx(float(whole.step()), abs=1e-5)
    torch.testing.assert_close(weights(in_rounds), weights(whole), atol=1e-6, rtol=1e-5)


def test_a_round_is_differentiated_before_the_next_is_solved_and_all_are_counted() -> None:
    learning, order = loop(depth=Equilibrium(rounds=3), framed=True), []
    learning.model.register_forward_pre_hook(lambda *_: order.append("forward"))
    next(learning.model.parameters()).register_hook(lambda _: order.append("backward"))
    learning.step()
    assert order == ["forward", "backward"] * 3
    summary = learning.statistics.summary()
    assert summary is not None
    assert (summary.steps, summary.solves) == (1, 3)


def test_a_round_goes_on_from_where_the_one_before_ended_as_often_as_it_is_asked() -> None:
    state = torch.randn(2, 16, 16)
    seen: list[Tensor] = []

    def f(z: Tensor) -> Tensor:
        seen.append(z)
        return 0.5 * z

    continued = Equilibrium(gradient=Unrolled(steps=1), start=RandomStart(), rounds=2).continued(state)
    for _ in range(2):
        seen.clear()
        for first, last in ((0, 5), (5, 10), (10, 16)):
            continued.of_tokens(first, last).reach(f, torch.zeros(2, last - first, 16), training=True)
        assert torch.equal(torch.cat(seen[::2], dim=1), state)
    for length in (5, 17):
        with pytest.raises(ValueError, match="states of its own tokens"):
            continued.reach(f, torch.zeros(2, length, 16), training=True)


class Repeated(Depth):
    """Solves of its own that it does not return."""

    solves = True
    rounds = 2

    def reach(self, f: Callable[[Tensor], Tensor], z0: Tensor, training: bool) -> Reached:
        return Reached(f(f(z0)))


def test_rounds_of_a_depth_without_a_solution_are_an_error_that_says_how_to_mend_it() -> None:
    with pytest.raises(ValueError, match=r"each round of Repeated .* give Reached\(solution=...\), or leave"):
        loop(depth=Repeated()).step()


def test_two_loops_take_turns() -> None:
    alone, first, second = loop(), loop(), loop(depth=UnrolledDepth(applications=3))
    for _ in range(3):
        alone.step()
    for _ in range(3):
        first.step()
        second.step()
    assert torch.equal(weights(first), weights(alone))


def test_another_shape_is_named() -> None:
    small, wide = loop(), loop(width=24)
    with pytest.raises(UserError, match=r"trainer is of another shape: .* is \(.*in the file"):
        wide.restore(small.checkpoint(), Path("step-0"))


def test_an_incomplete_trainer_state_is_named() -> None:
    learning = loop()
    learning.step()
    saved = learning.checkpoint()
    for lacking in ("random.0.cpu", "statistics.sums", "optimizer.exp_avg.embedding.weight"):
        trainer = {name: tensor for name, tensor in saved.trainer.items() if name != lacking}
        with pytest.raises(UserError, match=r"trainer does not belong"):
            loop().restore(replace(saved, trainer=trainer), Path("step-1"))


def test_statistics_are_means_since_the_reset() -> None:
    learning = loop()
    learning.step()
    learning.statistics.reset()
    assert learning.statistics.summary() is None
    losses = [float(learning.step()) for _ in range(3)]
    summary = learning.statistics.summary()
    assert summary is not None
    assert summary.loss == pytest.approx(sum(losses) / 3)
    assert summary.steps == 3
    assert summary.tokens == 3 * 2 * 16
    assert (summary.evaluations or 0) >= 4
    assert 0 < (summary.residual or 0) <= (summary.residual_worst or 0)
    assert (summary.skipped, summary.failed, summary.solves) == (0, 0, 3)
    assert 0 <= (summary.unconverged or 0) <= 1


def test_explicit_depths_have_no_residual() -> None:
    learning = loop(depth=UnrolledDepth(applications=2))
    learning.step()
    summary = learning.statistics.summary()
    assert summary is not None
    assert (summary.evaluations, summary.residual, summary.residual_worst) == (None, None, None)


@pytest.mark.parametrize("averaging", [None, Exponential()], ids=["none", "exponential"])
def test_a_baseline_learns_a_synthetic_task_and_resumes_bit_for_bit(averaging: Averaging | None) -> None:
    task = CopyMemory(blanks=4, symbols=3, held_out=100)
    recipe = replace(TRAINING, steps=40, batch_size=8, learning_rate=2e-2, averaging=averaging)

    def learner(seed: int) -> TrainingLoop:
        torch.manual_seed(seed)
        model = SequenceModel(UntiedEmbedding(10, 8, 16), [LSTMLayer(8, 16, 0.1)], hidden_dropout=0.1)
        return TrainingLoop(model, recipe, task.training(recipe.batch_size))

    undisturbed, interrupted, resumed = learner(0), learner(0), learner(1)
    before = evaluate_segments(undisturbed.model, task.split("valid").segments(500)).loss
    torch.manual_seed(2)
    for _ in range(40):
        undisturbed.step()
    assert evaluate_segments(undisturbed.model, task.split("valid").segments(500)).loss < before / 2
    assert evaluate_segments(undisturbed.evaluated, task.split("valid").segments(500)).loss < before
    assert (undisturbed.evaluated is undisturbed.model) == (averaging is None)
    torch.manual_seed(2)
    for _ in range(20):
        interrupted.step()
    resumed.restore(interrupted.checkpoint(), Path("step-20"))
    for _ in range(20):
        resumed.step()
    assert torch.equal(weights(resumed), weights(undisturbed))
