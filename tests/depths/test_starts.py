"""Random starts in training, and several starts in evaluation of which the best is taken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import equilibria as eq
from distributed_cases import IMPLICIT, language_model
from equilibria.configuration import read_recipe, write_recipe
from equilibria.depths import DepthSchedule, Equilibrium, GrowingLimits, PathNoise, RandomStart, Restarts
from equilibria.distributed import World, seed_process
from equilibria.errors import UserError
from tiny import tiny_recipe

SAMPLES = eq.Picard(tol=1e-6, max_evaluations=60, scope="sample")
Z0 = torch.linspace(-1, 1, 24).view(4, 3, 2)


def several(z: Tensor) -> Tensor:
    """Four maps, one a row: two fixed points of which the nearer is found, none that attracts, one, and NaN above 0."""
    return torch.cat(
        [
            torch.tanh(3.0 * z[0:1]),
            -1.5 * z[1:2] / (1 + z[1:2].square()).sqrt() - 1.2 * z[1:2].sign(),
            0.5 * z[2:3] + 1.0,
            torch.where(z[3:4].mean() > 0, torch.nan, 0.25 * z[3:4] - 1.0),
        ]
    )


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_a_random_start_is_noise_around_the_cell_s_own_in_a_share_of_the_rows(share):
    torch.manual_seed(0)
    z0 = torch.full((400, 5, 8), 3.0)
    noise = RandomStart(std=0.5, share=share).around(z0) - z0
    moved = noise.flatten(1).abs().amax(1) > 0
    assert moved.float().mean().item() == pytest.approx(share, abs=0.06)
    assert noise[moved].std().item() == pytest.approx(0.5, rel=0.05)
    assert abs(noise[moved].mean().item()) < 0.02
    assert (noise[moved] != 0).float().mean() > 0.99
    assert RandomStart(std=0.0).around(z0) is z0


def test_only_training_starts_at_random_and_without_a_spread_nothing_is_drawn():
    depth = Equilibrium(gradient=eq.Unrolled(steps=1), residual_penalty=0.0)
    usual = depth.reach(lambda z: z + 1, Z0, training=True).state
    before = torch.get_rng_state()
    quiet = replace(depth, start=RandomStart(std=0.0)).reach(lambda z: z + 1, Z0, training=True).state
    evaluated = replace(depth, start=RandomStart()).reach(lambda z: 0.5 * z, Z0, training=False).state
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(quiet, usual)
    assert torch.equal(evaluated, depth.reach(lambda z: 0.5 * z, Z0, training=False).state)
    torch.manual_seed(3)
    found = replace(depth, start=RandomStart(0.5)).reach(lambda z: z + 1, Z0, training=True).state
    torch.manual_seed(3)
    torch.testing.assert_close(found, Z0 + 0.5 * torch.randn(Z0.shape) + 1)


def test_processes_draw_starts_of_their_own_that_can_be_drawn_again():
    def drawn(rank: int) -> Tensor:
        seed_process(5, World(rank=rank, size=2))
        return RandomStart().around(Z0)

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(0), drawn(1))


@pytest.mark.parametrize("seed", range(4))
def test_of_every_row_the_start_with_the_least_residual_is_taken_and_all_are_counted(seed):
    restarts = Restarts(starts=4, std=2.0, seed=seed)
    depth = Equilibrium(eval_solver=replace(SAMPLES, trace_groups=True), restarts=restarts)
    before = torch.get_rng_state()
    reached = depth.reach(several, Z0, training=False)
    assert torch.equal(torch.get_rng_state(), before)
    solution = reached.solution
    assert solution is not None
    generator = torch.Generator().manual_seed(seed)
    noises = [torch.zeros(3, 2), *(torch.randn(3, 2, generator=generator) for _ in range(3))]
    alone = [SAMPLES.solve(several, Z0 + 2.0 * noise) for noise in noises]
    for row in range(4):
        ranks = [(not bool(one.converged[row]), float(one.residual[row]), n) for n, one in enumerate(alone)]
        best = alone[min(ranks)[2]]
        assert torch.equal(reached.state[row].flatten(), best.value[row])
        assert solution.residual[row] == best.residual[row]
        assert solution.converged[row] == best.converged[row]
        assert solution.group_evaluations[row] == sum(int(one.group_evaluations[row]) for one in alone)
    assert solution.evaluations == sum(one.evaluations for one in alone) == len(solution.trace)
    assert solution.group_trace is not None
    assert solution.group_trace.shape == (solution.evaluations, 4)
    assert solution.status is not eq.Status.CONVERGED
    assert bool(solution.converged[[0, 2]].all())


def test_the_status_is_that_of_the_solutions_that_were_taken():
    def f(z: Tensor) -> Tensor:  # from zeros NaN in the first row; never at rest in the second
        at_start = bool((z[0] == 0).all())
        turning = torch.stack([-z[1, :, 1], z[1, :, 0]], dim=-1) + 1.0
        return torch.stack([torch.where(torch.tensor(at_start), torch.nan, 0.1 * z[0] + 1.0), turning])

    solver = replace(SAMPLES, max_evaluations=6)
    z0 = torch.zeros(2, 3, 2)
    one = Equilibrium(eval_solver=solver).reach(f, z0, training=False).solution
    both = Equilibrium(eval_solver=replace(solver, tol=0.1), restarts=Restarts(2)).reach(f, z0, training=False).solution
    assert one is not None
    assert both is not None
    assert one.status is eq.Status.NON_FINITE
    assert both.converged.tolist() == [True, False]
    assert both.status is eq.Status.MAX_EVALUATIONS
    calm = Equilibrium(eval_solver=SAMPLES, restarts=Restarts(2)).reach(lambda z: 0.5 * z + 1, z0, training=False)
    assert calm.solution is not None
    assert calm.solution.status is eq.Status.CONVERGED


def test_with_gradients_on_the_value_is_the_same_and_the_gradient_that_of_the_solution_taken():
    weight = torch.tensor(3.0, requires_grad=True)
    depth = Equilibrium(eval_solver=SAMPLES, restarts=Restarts(starts=3, std=2.0))

    def f(z: Tensor) -> Tensor:
        return torch.tanh(weight * z)

    with torch.no_grad():
        without = depth.reach(f, Z0, training=False).state
    reached = depth.reach(f, Z0, training=False)
    assert torch.equal(reached.state, without)
    (slope,) = torch.autograd.grad(reached.state.sum(), weight)
    inner = 1 - without.square()  # of tanh; the rest is the implicit function theorem, element by element
    torch.testing.assert_close(slope, (inner * without / (1 - 3.0 * inner)).sum().detach(), rtol=1e-3, atol=1e-4)
    assert reached.solution is not None
    assert reached.solution.adjoint.status is eq.Status.CONVERGED


def test_a_whole_state_can_be_chosen_and_tokens_cannot():
    whole = Equilibrium(eval_solver=replace(SAMPLES, scope="all"), restarts=Restarts(starts=3))
    solution = whole.reach(lambda z: torch.tanh(3 * z), Z0, training=False).solution
    assert solution is not None
    assert solution.residual.shape == (1,)
    for scope in ("prefix", "token"):
        with pytest.raises(ValueError, match=f'scope is "{scope}": give "sample" .* or drop restarts'):
            Equilibrium(eval_solver=replace(SAMPLES, scope=scope), restarts=Restarts())
    with pytest.raises(ValueError, match="starts must be at least 2"):
        Restarts(starts=1)
    with pytest.raises(ValueError, match="std must be above 0"):
        Restarts(std=0.0)
    with pytest.raises(ValueError, match="share must be above 0"):
        RandomStart(share=0.0)


def test_a_model_with_restarts_is_independent_of_its_batch_and_writes_without_a_cache():
    torch.manual_seed(0)
    solver = replace(IMPLICIT.eval_solver, scope="sample")
    model = language_model(replace(IMPLICIT, eval_solver=solver, restarts=Restarts(starts=3))).eval()
    tokens = torch.randint(0, 31, (3, 9))
    assert eq.audit_batch_invariance(model, tokens).holds
    assert not model.decodes()
    with torch.no_grad():
        first = model(tokens)
        again = model(tokens)
        once = model(tokens, depth=replace(IMPLICIT, eval_solver=solver))
    assert torch.equal(first.logits, again.logits)
    assert first.solution.evaluations > 2 * once.solution.evaluations
    assert (first.solution.residual <= once.solution.residual).all()
    assert model.generate(tokens, 2, temperature=0.0).shape == (3, 11)


def test_recipes_set_every_one_of_them_by_a_flag(tmp_path: Path):
    path = tmp_path / "recipe.toml"
    write_recipe(tiny_recipe(tmp_path), path)
    flags = {
        "start.std": "0.5",
        "start.share": "0.5",
        "noise.std": "0.1",
        "rounds": "3",
        "schedule.gradient_steps.kind": "growing",
        "schedule.gradient_steps.first": "1",
        "schedule.gradient_steps.last": "4",
    }
    scoped = {"eval_solver.scope": "sample", "restarts.starts": "4", "restarts.seed": "9"}

    def depth(given: dict[str, str]) -> Equilibrium:
        found = read_recipe(path, [word for name, value in given.items() for word in (f"--model.depth.{name}", value)])
        assert isinstance(found.model, eq.LanguageModelRecipe)
        assert isinstance(found.model.depth, Equilibrium)
        return found.model.depth

    found = depth(flags)
    assert (found.start, found.noise, found.rounds) == (RandomStart(0.5, 0.5), PathNoise(0.1), 3)
    assert found.schedule is not None
    assert found.schedule.gradient_steps == GrowingLimits(1, 4)
    assert depth(scoped).restarts == Restarts(starts=4, seed=9)
    with pytest.raises(UserError, match="restarts choose by the residual"):
        depth({"restarts.starts": "4"})


def test_a_growing_gradient_is_of_a_phantom_and_drawn_apart_from_limits():
    both = DepthSchedule(limits=eq.RandomLimits(1, 8), gradient_steps=eq.RandomLimits(1, 8))
    depth = Equilibrium(schedule=both)
    drawn = []
    for step in range(60):
        at = depth.at(step, 60, 7)
        assert isinstance(at, Equilibrium)
        assert isinstance(at.gradient, eq.Phantom)
        drawn.append((at.solver.max_evaluations, at.gradient.steps))
    assert {steps for _, steps in drawn} == set(range(1, 9))
    assert sum(limit == steps for limit, steps in drawn) < 20
    for gradient in (eq.Implicit(), eq.Unrolled()):
        with pytest.raises(ValueError, match="of the gradient Phantom"):
            Equilibrium(gradient=gradient, schedule=DepthSchedule(gradient_steps=GrowingLimits(1, 2)))
