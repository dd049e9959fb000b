"""A plan beside the run that it is of: whatever can be counted is the same."""

import resource
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from equilibria.configuration import Recipe, read_recipe
from equilibria.data import FolderText
from equilibria.data.prepared import opened
from equilibria.depths import Depth, DepthSchedule, Equilibrium, GrowingLimits, UnrolledDepth
from equilibria.machine import plan as module
from equilibria.machine.costs import Measurements, StepSize, measure
from equilibria.machine.plan import Plan, PlannedData, plan_run
from equilibria.models import LanguageModel
from equilibria.optimization import Exponential, Muon
from equilibria.runs.metrics import read_metrics
from tiny import TRAINING, tiny_recipe, tiny_task_recipe, tiny_trainer, with_model


@dataclass(frozen=True)
class GrowingDepth(UnrolledDepth):
    """One application at first, and one more after every few steps: that of docs/extending.md."""

    every: int = 10

    def at(self, step: int, steps: int, seed: int) -> Depth:
        return replace(self, applications=min(self.applications, 1 + step // self.every))


def planned(recipe: Recipe, seconds: float = 60.0) -> Plan:
    task = opened(recipe.data)
    data = PlannedData(task.tokenizer.vocabulary_size, task)
    return plan_run(recipe, data, torch.device("cpu"), seconds, lambda _: None)


@pytest.mark.parametrize("kind", ["text", "task"])
def test_a_plan_and_its_run(kind: str, tmp_path: Path) -> None:
    training = replace(TRAINING, optimizer=Muon(), averaging=Exponential(), evaluate_every=5)
    recipe = tiny_recipe(tmp_path, training) if kind == "text" else tiny_task_recipe(tmp_path, training)
    found, trainer = planned(recipe), tiny_trainer(recipe)
    trainer.run()
    loop, parameters = trainer.loop, list(trainer.model.parameters())
    assert sum(found.parameters.values()) == sum(parameter.numel() for parameter in parameters)
    assert found.memory.weights == sum(parameter.nbytes for parameter in parameters)
    assert found.memory.gradients == found.memory.weights
    assert found.memory.average == found.memory.weights
    assert found.memory.optimizer == sum(tensor.nbytes for tensor in loop._optimizers.tensors().values())
    memories = [memory for memory in loop._memories if memory is not None]
    assert found.memory.segments == sum(tensor.nbytes for memory in memories for tensor in memory.flatten())
    assert found.cost is not None
    assert found.cost.size == found.size
    assert found.cost.tokens * training.steps == loop.tokens
    lines = [line for line in read_metrics(trainer.folder.metrics) if line["kind"] == "valid"]
    assert len(lines) == 3
    assert found.step_seconds is not None
    assert (found.step_seconds == found.cost.seconds) == (kind == "text")  # that of the task begins shallow
    assert found.training_seconds == pytest.approx(found.step_seconds * training.steps)
    result = trainer._validation
    assert result is not None
    evaluation = 3 * result.tokens / found.cost.evaluated
    assert found.evaluation_seconds == pytest.approx(evaluation)
    assert found.run_seconds == pytest.approx(found.step_seconds * training.steps + evaluation)
    assert (found.passes is None) == (kind == "task")
    assert found.memory.total > found.memory.weights * 5


def test_a_plan_that_was_scaled_says_so_and_is_as_large(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, replace(TRAINING, batch_size=4, segment_length=32))
    whole, hasty = planned(recipe), planned(recipe, seconds=1e-9)
    assert whole.notes == ()
    assert hasty.notes[-1].startswith("measured on 1 row of 16 tokens and scaled to 4 rows of 32 tokens, as there was")
    assert hasty.cost is not None
    assert hasty.step_seconds == pytest.approx(hasty.cost.seconds * 8)
    assert hasty.memory.segments == whole.memory.segments
    assert hasty.memory.saved is not None
    assert whole.memory.saved is not None
    assert hasty.memory.saved == pytest.approx(whole.memory.saved, rel=0.2)  # a mask grows with the square


def test_a_shallow_start_is_planned_beside_what_follows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(tmp_path)

    def at(applications: int) -> Plan:
        schedule = DepthSchedule(warmup_share=0.75, warmup_applications=applications)
        return planned(with_model(recipe, depth=Equilibrium(schedule=schedule)))

    def measured(model: LanguageModel, *rest: Any) -> Measurements:
        found = measure(model, *rest)
        seconds = 1.0 if isinstance(rest[-1], UnrolledDepth) else 3.0
        return replace(found, costs=(*found.costs[:-1], replace(found.largest, seconds=seconds)))

    monkeypatch.setattr(module, "measure", measured)
    one, many = at(1), at(40)
    assert one.cost is not None
    assert one.cost.evaluations is not None  # of what follows the warm-up
    assert one.step_seconds == pytest.approx(0.75 * 1.0 + 0.25 * 3.0)
    assert one.tokens_per_second == pytest.approx(one.cost.tokens / 1.5)
    assert one.notes == ("the depth changes over training: measured as it is in step 5 and 11 of 12",)
    assert many.memory.saved is not None
    assert one.memory.saved is not None
    assert many.memory.saved > 3 * one.memory.saved  # the larger of the two


@pytest.mark.parametrize(
    ("depth", "measured"),
    [
        (Equilibrium(), None),
        (Equilibrium(schedule=DepthSchedule(warmup_share=1.0)), None),
        (Equilibrium(schedule=DepthSchedule(limits=GrowingLimits(1, 4))), "7"),
        (Equilibrium(schedule=DepthSchedule(warmup_steps=4)), "3 and 9"),
        (GrowingDepth(4, every=2), "7"),
    ],
)
def test_a_plan_says_at_which_depth_it_was_measured(depth: Depth, measured: str | None, tmp_path: Path) -> None:
    note = f"the depth changes over training: measured as it is in step {measured} of 12"
    assert planned(with_model(tiny_recipe(tmp_path), depth=depth)).notes == (() if measured is None else (note,))


@pytest.mark.parametrize("shallow", [True, False])
def test_a_phase_that_stopped_early_counts_at_the_whole_size(
    shallow: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four rows would have taken twice the memory of two, more than the other phase took of four."""

    def measured(model: LanguageModel, *rest: Any) -> Measurements:
        cost = measure(model, *rest).largest
        if isinstance(rest[-1], UnrolledDepth) is shallow:
            return Measurements((replace(cost, size=StepSize(1, 2, 16), saved=9_000_000, peak=18_000_000),), "memory")
        return Measurements((replace(cost, size=StepSize(1, 4, 16), saved=10_000_000, peak=20_000_000),), None)

    monkeypatch.setattr(module, "measure", measured)
    recipe = tiny_recipe(tmp_path, replace(TRAINING, batch_size=4))
    schedule = DepthSchedule(warmup_share=0.5, warmup_applications=1)
    found = planned(with_model(recipe, depth=Equilibrium(schedule=schedule)))
    assert found.memory.saved == 18_000_000
    assert found.memory.temporaries == 18_000_000 - found.memory.gradients
    assert found.notes[-1].startswith("measured on 2 rows of 16 tokens and scaled to 4 rows of 16 tokens, as a larger")


def test_without_its_text_random_tokens_stand_for_it(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    recipe = replace(recipe, data=FolderText(tmp_path / "absent"))
    found = plan_run(recipe, PlannedData(256), torch.device("cpu"), 60.0, lambda _: None)
    assert found.parameters.keys() == {"embedding", "cell"}
    assert found.notes == ("steps were measured on Zipf-distributed random tokens",)
    assert found.evaluation_seconds is not None
    assert found.passes is None
    silent = replace(recipe, training=replace(recipe.training, evaluate_tokens=None))
    found = plan_run(silent, PlannedData(256), torch.device("cpu"), 60.0, lambda _: None)
    assert found.evaluation_seconds is None
    assert found.run_seconds == found.training_seconds
    assert "evaluations are not counted" in found.notes[-1]


def test_the_largest_recipe_is_counted_where_it_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The medium model of WikiText-103 on a machine with 2 GiB free: 172 million parameters, none of them allocated."""
    monkeypatch.setattr(module, "available_memory", lambda _: 2**31)
    recipe = read_recipe("wikitext-103/deq-transformer-medium")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = plan_run(recipe, PlannedData(267_735), torch.device("cpu"), 60.0, lambda _: None)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert sum(found.parameters.values()) == pytest.approx(171.8e6, rel=1e-3)
    assert found.parameters["cell"] == pytest.approx(43.0e6, rel=1e-2)
    assert found.memory.weights == 4 * sum(found.parameters.values())
    assert found.memory.optimizer == pytest.approx(8 * sum(found.parameters.values()), rel=1e-5)
    assert (found.cost, found.memory.saved, found.run_seconds) == (None, None, None)
    assert found.notes[-1] == "no step was measured: weights, gradients, optimizer and average take 2.6 GiB of 2.0 GiB"
    assert found.size == StepSize(1, 56, 150)
    assert grown < found.memory.weights / 4
