"""One, two and four real processes, joined by gloo: they take the same steps, and what they save suits any number."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import distributed_cases as cases
from equilibria.data.batches import NO_TARGET
from equilibria.distributed import ALONE, World, own_rows
from equilibria.errors import UserError
from equilibria.nn.feed_forward import BoundFeedForward
from equilibria.training.loop import TrainingLoop
from equilibria.training.parallel import MicroBatch, Objective, Single
from processes import run_cases
from tiny import TRAINING

Results = list[dict[str, Tensor]]

# Rounding decides in matrix products of bfloat16.
LOOSE = {"ddp/lowered": 1e-2, "fsdp2/lowered": 1e-2}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return cases.agreement(tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Results]]:
    folder = tmp_path_factory.mktemp("two")
    names = ("agreement", "alone_in_solves", "saved", "resumed", "full_disk", "skipping")
    return folder, run_cases(2, folder, *names)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory, two: tuple[Path, dict[str, Results]]) -> dict[str, Results]:
    folder = tmp_path_factory.mktemp("four")
    for saved in two[0].glob("*-0.*"):
        if saved.is_dir():
            (folder / saved.name).symlink_to(saved)
    return run_cases(4, folder, "agreement", "alone_in_solves", "resumed")


def check_agreement(found: Results, alone: dict[str, Tensor]) -> None:
    for result in found:
        assert {key.partition("/")[2] for key in result} == {key.partition("/")[2] for key in alone}
        for key, tensor in result.items():
            variant, _, quantity = key.rpartition("/")
            expected = alone[f"ddp/{key.partition('/')[2]}"]
            tolerance = LOOSE.get(variant, 1e-5)
            torch.testing.assert_close(tensor, expected, atol=tolerance, rtol=0, msg=lambda m, key=key: f"{key}: {m}")
            if "weight" in quantity:
                assert tensor.isfinite().all()


def test_two_processes_take_the_steps_of_one(two: tuple[Path, dict[str, Results]], alone: dict[str, Tensor]) -> None:
    check_agreement(two[1]["agreement"], alone)


def test_four_processes_take_the_steps_of_one(four: dict[str, Results], alone: dict[str, Tensor]) -> None:
    check_agreement(four["agreement"], alone)


def check_solves(found: Results) -> None:
    for strategy in ("ddp", "fsdp2"):
        evaluations = {int(result[f"{strategy}/evaluations"]) for result in found}
        assert len(evaluations) > 1, "all processes evaluated as often; the test has shown nothing"
        for result in found:
            inside, gathers, scatters, solves = result[f"{strategy}/counts"].tolist()
            assert inside == 0
            assert solves == 12  # six steps, forwards and backwards
            assert (gathers, scatters) == ((6, 6) if strategy == "fsdp2" else (0, 0))


def test_no_collective_is_inside_a_solve_and_processes_with_different_data_finish(
    two: tuple[Path, dict[str, Results]], four: dict[str, Results]
) -> None:
    check_solves(two[1]["alone_in_solves"])
    check_solves(four["alone_in_solves"])


def same(left: dict[str, Tensor], right: dict[str, Tensor], prefix: str, tolerance: float | None = None) -> None:
    """The weights of a run that went on are those of the undisturbed one."""
    for name, expected in left.items():
        found = right[f"{prefix}{name}"]
        if tolerance is None:
            assert torch.equal(found, expected), name
        else:
            torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_as_many_processes_go_on_bit_for_bit(two: tuple[Path, dict[str, Results]], strategy: str) -> None:
    for saved, resumed in zip(two[1]["saved"], two[1]["resumed"], strict=True):
        own = {name: tensor for name, tensor in saved.items() if name.startswith(strategy)}
        assert {name.split(".")[1] for name in own} == {"0", "2"}  # without dropout, and with
        same(own, resumed, f"{strategy}/")


def test_other_numbers_of_processes_and_the_other_strategy_go_on(
    two: tuple[Path, dict[str, Results]], four: dict[str, Results]
) -> None:
    saved = {name: tensor for name, tensor in two[1]["saved"][0].items() if "-0.0." in name}
    one = cases.resumed(two[0])
    same(saved, one, "ddp/", 1e-5)
    for strategy in ("ddp/", "fsdp2/"):
        same(saved, two[1]["resumed"][1], strategy, 1e-5)
        same(saved, four["resumed"][3], strategy, 1e-5)


def test_dropout_differs_between_processes_and_returns_with_their_number(
    two: tuple[Path, dict[str, Results]],
) -> None:
    saved, resumed = two[1]["saved"][0], two[1]["resumed"][0]
    masked = {name: tensor for name, tensor in saved.items() if name.startswith("ddp-0.2.")}
    assert masked
    same(masked, resumed, "ddp/")
    assert any(not torch.equal(tensor, saved[name.replace("0.2", "0.0")]) for name, tensor in masked.items())


def test_a_disk_that_is_full_for_one_process_stops_all(two: tuple[Path, dict[str, Results]]) -> None:
    assert len(two[1]["full_disk"]) == 2


def test_a_step_that_one_process_cannot_take_is_skipped_by_all(two: tuple[Path, dict[str, Results]]) -> None:
    first, second = two[1]["skipping"]
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_batch_is_shared_evenly_or_not_at_all() -> None:
    assert [own_rows(6, World(rank, 3)) for rank in range(3)] == [slice(0, 2), slice(2, 4), slice(4, 6)]
    with pytest.raises(UserError, match=r"batch_size = 5 cannot be divided among 2 processes; give a multiple of 2"):
        own_rows(5, World(0, 2))


def test_a_slot_without_targets_takes_part_with_no_weight() -> None:
    recipe, model = cases.variants()["implicit"]
    loop = TrainingLoop(model, recipe, cases.TrainingStream(cases.TOKENS, 4, 16))
    segment = cases.TrainingStream(cases.TOKENS, 4, 16).at(0)
    loss = loop._backward(0, segment.inputs, torch.full_like(segment.targets, NO_TARGET), 64, [])
    assert float(loss) == 0.0
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def test_lowered_precision_keeps_states_and_residuals_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    _, model = cases.variants()["implicit"]
    assert isinstance(model, cases.LanguageModel)
    seen: list[torch.dtype] = []
    feed_forward = BoundFeedForward.__call__

    def seeing(network: BoundFeedForward, x: Tensor) -> Tensor:
        result = feed_forward(network, x)
        seen.append(result.dtype)
        return result

    monkeypatch.setattr(BoundFeedForward, "__call__", seeing)
    solutions = []
    model.register_forward_hook(lambda module, arguments, output: solutions.append(output.solution))
    segment = cases.TrainingStream(cases.TOKENS, 4, 16).at(0)
    gradients = {}
    for precision in ("float32", "bfloat16"):
        model.zero_grad()
        parallel = Single(Objective(model, precision))
        objective, figures = parallel.forward(MicroBatch(segment.inputs, segment.targets, None, torch.ones(())))
        objective.backward()
        assert figures.loss.dtype == objective.dtype == torch.float32
        found = [parameter.grad for parameter in model.parameters()]
        gradients[precision] = torch.cat([gradient.flatten() for gradient in found if gradient is not None])
        assert {solutions[-1].value.dtype, solutions[-1].residual.dtype, gradients[precision].dtype} == {torch.float32}
        assert set(seen) == {getattr(torch, precision)}
        seen.clear()
    close = torch.nn.functional.cosine_similarity(gradients["float32"], gradients["bfloat16"], dim=0)
    assert 0.98 < float(close) < 1.0


def test_one_process_alone_says_what_it_is_told() -> None:
    assert ALONE.sum(1, 2) == [1, 2]
    assert ALONE.highest(3.0) == [3.0]
    assert ALONE.gather("a") == ["a"]
    assert TRAINING.precision == "float32"
