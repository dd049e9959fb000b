"""A compiled step of one token: what the usual step makes, and wherever it does not apply, the usual step."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._inductor.exc import InductorError

import equilibria as eq
from equilibria.cells import Cache, ContractiveCell, StackedCell, TrellisCell
from equilibria.depths import Equilibrium, Restarts, UnrolledDepth
from equilibria.errors import UserError
from equilibria.models.compiled import CompiledToken, check_compilable, compile_token
from equilibria.nn import TiedEmbedding

V, D = 19, 16
SECANT = eq.Anderson(tol=1e-4, max_evaluations=60, scope="prefix", history=1)
DAMPED = eq.Picard(tol=1e-4, max_evaluations=90, scope="token", damping=0.9)
CELL: dict[str, Any] = {"d_model": D, "heads": 4, "inner": 32, "carry": 0.5}


def built(framed: bool = True, solver: eq.Solver = SECANT, **cell: Any) -> eq.LanguageModel:
    torch.manual_seed(0)
    model = eq.LanguageModel(
        TiedEmbedding(V, D),
        ContractiveCell(**{**CELL, **cell}),
        Equilibrium(eval_solver=solver),
        prelude=ContractiveCell(**CELL, injection=False) if framed else None,
        coda=StackedCell([ContractiveCell(**CELL, injection=False) for _ in range(2)]) if framed else None,
    )
    with torch.no_grad():
        model.embedding.weight.mul_(3.0)  # pyright: ignore
    return model.eval()


MODELS: dict[str, Callable[[], eq.LanguageModel]] = {
    "framed": lambda: built(token_carry=1.0),
    "shared heads": lambda: built(
        framed=False, solver=DAMPED, blocks=2, positions="none", key_value_heads=2, query_key_norm=False, norm="rms"
    ),
}


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The package of each model, compiled when it is first asked for."""
    folder = tmp_path_factory.mktemp("packages")

    def package(name: str) -> Path:
        file = folder / f"{name}.pt2"
        if not file.exists():
            compile_token(MODELS[name](), file)
        return file

    return package


@pytest.fixture
def both(packages: Callable[[str], Path]) -> tuple[eq.LanguageModel, eq.LanguageModel]:
    """The framed model with a compiled step, and without."""
    compiled, usual = MODELS["framed"](), MODELS["framed"]()
    compiled.compiled_token = CompiledToken(compiled, packages("framed"))
    return compiled, usual


def read(model: eq.LanguageModel, cache: Cache, token: int, depth: Any = None) -> Any:
    return model.decode(torch.tensor([[token]]), cache, depth=depth)


def steps(model: eq.LanguageModel) -> list[bool]:
    """Of each step from now on, whether it was the compiled one."""
    compiled, known = model.compiled_token, list[bool]()
    assert compiled is not None
    usual = compiled.read

    def counted(*arguments: Any) -> Any:
        reached = usual(*arguments)
        known.append(reached is not None)
        return reached

    setattr(compiled, "read", counted)  # noqa: B010
    return known


def alike(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found.logits_BV, expected.logits_BV, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(found.hidden_BLD, expected.hidden_BLD, atol=2e-3, rtol=2e-3)
    ours, theirs = found.solution, expected.solution
    assert ours.status is theirs.status is eq.Status.CONVERGED
    assert abs(ours.evaluations - theirs.evaluations) <= 1  # a residual at the tolerance may be on either side
    assert len(ours.trace) == ours.evaluations == int(ours.group_evaluations)
    torch.testing.assert_close(torch.tensor(ours.trace[:3]), torch.tensor(theirs.trace[:3]), atol=1e-4, rtol=1e-3)
    for name in ("residual", "converged", "group_evaluations", "value"):
        assert getattr(ours, name).shape == getattr(theirs, name).shape
        assert getattr(ours, name).dtype == getattr(theirs, name).dtype
    assert ours.tolerance == theirs.tolerance
    assert float(ours.residual) <= ours.tolerance


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_token_is_as_usual_while_the_cache_grows(name: str, packages: Callable[[str], Path]) -> None:
    compiled, usual = MODELS[name](), MODELS[name]()
    compiled.compiled_token = CompiledToken(compiled, packages(name))
    known, tokens = steps(compiled), torch.randint(0, V, (1, 300))
    prompt = tokens[:, :4]
    ours, theirs = compiled.prefill(prompt).cache, usual.prefill(prompt).cache
    assert isinstance(ours, Cache)
    assert isinstance(theirs, Cache)
    for number, token in enumerate(tokens[0, 4:].tolist()):
        found, expected = read(compiled, ours, token), read(usual, theirs, token)
        if number % 20 == 0 or number > 250:
            alike(found, expected)
            for one, other in zip(ours.contents, theirs.contents, strict=True):
                torch.testing.assert_close(one, other, atol=5e-3, rtol=5e-3)
    assert known == [False, *[True] * 296]  # the prompt was several tokens


@pytest.mark.slow
def test_a_window_that_forgets_and_rows_that_join_and_leave(both: tuple[eq.LanguageModel, eq.LanguageModel]) -> None:
    caches = []
    for model in both:
        first, second = (model.prefill(torch.arange(n, n + 6).unsqueeze(0), limit=8).cache for n in (1, 9))
        assert isinstance(first, Cache)
        assert isinstance(second, Cache)
        for token in range(12):
            read(model, first, token)
        gathered = Cache.gathered([(first, torch.tensor([0])), (second, torch.tensor([0]))])
        model.decode(torch.tensor([[3], [4]]), gathered)
        caches.append(gathered.select(torch.tensor([1])))
    known = steps(both[0])
    for token in (5, 6, 7):
        alike(read(both[0], caches[0], token), read(both[1], caches[1], token))
    assert known == [True] * 3


@pytest.mark.slow
def test_the_text_is_the_usual_one(both: tuple[eq.LanguageModel, eq.LanguageModel]) -> None:
    known, prompt = steps(both[0]), torch.tensor([[1, 2, 3]])
    assert both[0].generate(prompt, 60, 0.0).equal(both[1].generate(prompt, 60, 0.0))
    assert known.count(True) == 59


@pytest.mark.slow
def test_an_effort_of_a_call_is_kept_to(both: tuple[eq.LanguageModel, eq.LanguageModel]) -> None:
    compiled, usual = both
    for tol, most in ((1e-2, 60), (1e-5, 200)):
        depth = Equilibrium(eval_solver=replace(SECANT, tol=tol, max_evaluations=most))
        ours, theirs = (model.prefill(torch.tensor([[1, 2, 3]]), depth=depth).cache for model in both)
        assert isinstance(ours, Cache)
        assert isinstance(theirs, Cache)
        known = steps(compiled)
        alike(read(compiled, ours, 4, depth), read(usual, theirs, 4, depth))
        assert known == [True]


@pytest.mark.slow
def test_what_does_not_converge_is_left_to_the_usual_step(both: tuple[eq.LanguageModel, eq.LanguageModel]) -> None:
    depth = Equilibrium(eval_solver=replace(SECANT, max_evaluations=2))
    known, found = steps(both[0]), []
    for model in both:
        cache = model.prefill(torch.tensor([[1, 2, 3]]), depth=depth).cache
        assert isinstance(cache, Cache)
        found.append(read(model, cache, 4, depth))
    assert known == [False, False]
    assert found[0].solution.status is found[1].solution.status is eq.Status.MAX_EVALUATIONS
    assert found[0].hidden_BLD.equal(found[1].hidden_BLD)


@pytest.mark.slow
def test_weights_are_followed_and_what_no_longer_fits_takes_the_usual_way(
    both: tuple[eq.LanguageModel, eq.LanguageModel],
) -> None:
    compiled, usual = both
    known = steps(compiled)

    def compared(depth: Any = None) -> None:
        caches = [model.prefill(torch.tensor([[1, 2, 3]]), depth=depth).cache for model in both]
        ours, theirs = (read(model, cache, 4, depth) for model, cache in zip(both, caches, strict=True))  # pyright: ignore
        torch.testing.assert_close(ours.logits_BV, theirs.logits_BV, atol=2e-3, rtol=2e-3)

    for number, weights in enumerate(zip(compiled.parameters(), usual.parameters(), strict=True), start=1):
        for weight in weights:
            with torch.no_grad():
                weight.mul_(torch.linspace(0.8, 1.1, weight.numel()).view_as(weight))
        compared()
        assert known == [False, True] * number
    known[:-2] = []
    compared(Equilibrium(eval_solver=eq.Picard(tol=1e-4, max_evaluations=90, scope="prefix")))
    compared(UnrolledDepth(5))
    handle = compiled.coda.cells[1].register_forward_hook(lambda *_: None)  # pyright: ignore
    compared()
    handle.remove()
    with torch.autocast("cpu", torch.bfloat16):
        caches = [model.prefill(torch.tensor([[1, 2, 3]])).cache for model in both]
        ours, theirs = (read(model, cache, 4) for model, cache in zip(both, caches, strict=True))  # pyright: ignore
        assert ours.logits_BV.equal(theirs.logits_BV)
    assert known[2:] == [False] * 8
    known.clear()
    compared()
    assert known == [False, True]
    for model in both:
        model.cell.inject.weight = torch.nn.Parameter(model.cell.inject.weight * 0.5)  # pyright: ignore
    compared()
    for model in both:
        model.coda = built().coda
    compared()
    assert known == [False, True, *[False] * 4]
    assert copy.deepcopy(compiled).compiled_token is None
    assert pickle.loads(pickle.dumps(compiled.compiled_token)) is None


@pytest.mark.slow
def test_values_that_are_not_finite_are_told_as_usual(both: tuple[eq.LanguageModel, eq.LanguageModel]) -> None:
    found = []
    for model in both:
        cache = model.prefill(torch.tensor([[1, 2, 3]])).cache
        assert isinstance(cache, Cache)
        features = torch.full((1, 1, D), torch.nan)
        found.append(model.decode(features, cache))
    assert found[0].solution.status is found[1].solution.status is eq.Status.NON_FINITE


@pytest.mark.slow
def test_a_package_that_is_not_one_and_a_compiler_that_fails_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = tmp_path / "token.pt2"
    damaged.write_bytes(b"no package")
    with pytest.raises(UserError, match=re.escape(f"{damaged} cannot be loaded")):
        CompiledToken(built(), damaged)

    def fails(*_: object, **__: object) -> None:
        raise InductorError(RuntimeError("no compiler here\nand more"), None)  # pyright: ignore

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fails)
    with pytest.raises(UserError, match=r"cannot be compiled .*no compiler here.*; see `equilibria doctor`"):
        compile_token(built(framed=False), tmp_path / "other.pt2")
    assert not (tmp_path / "other.pt2").exists()


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (lambda: built(solver=eq.Anderson(scope="prefix")), "with Picard, or with Anderson of history 1"),
        (
            lambda: built(solver=eq.Broyden(scope="token")),
            "a token is compiled only at an equilibrium whose eval_solver",
        ),
        (lambda: built(positions="linear"), "with rotary positions or none; found ContractiveCell"),
        (lambda: built(strict=True), "that see themselves"),
        (lambda: built().double(), "in float32 on a CPU; found torch.float64 on cpu"),
        (
            lambda: eq.LanguageModel(TiedEmbedding(V, D), TrellisCell(D, D), Equilibrium(eval_solver=SECANT)).eval(),
            "found TrellisCell",
        ),
        (
            lambda: eq.LanguageModel(TiedEmbedding(V, D), ContractiveCell(**CELL), UnrolledDepth(3)).eval(),
            "only at an equilibrium .*found UnrolledDepth",
        ),
        (
            lambda: eq.LanguageModel(
                TiedEmbedding(V, D),
                ContractiveCell(**CELL),
                Equilibrium(eval_solver=replace(SECANT, scope="sample"), restarts=Restarts()),
            ).eval(),
            "only at an equilibrium",
        ),
    ],
)
def test_what_is_not_compiled_is_named(model: Callable[[], eq.LanguageModel], told: str) -> None:
    with pytest.raises(UserError, match=told):
        check_compilable(model())
