"""The thread that runs the model, behind its desk: what becomes of requests that are decoded together."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from threading import Event as Signal
from typing import Any

import pytest
import torch

import equilibria as eq
from equilibria.cells import ContractiveCell
from equilibria.data.tokenizers import byte_tokenizer
from equilibria.depths import Equilibrium, UnrolledDepth
from equilibria.inference.effort import depth_at
from equilibria.inference.writing import Piece, Writer, Written
from equilibria.models import LanguageModel
from equilibria.nn import UntiedEmbedding
from equilibria.serving.errors import ApiError
from equilibria.serving.jobs import Desk
from equilibria.serving.request import Served, ServerLimits, read_request
from equilibria.serving.worker import Event, Wrote

SERVED = Served("m", byte_tokenizer(), 40, False, True, ServerLimits(prompt_part=8))


def requests(model: LanguageModel, *asked: dict[str, Any], served: Served = SERVED) -> list[list[Event]]:
    """What has become of requests that are decoded together, each up to its end."""

    async def collected() -> list[list[Event]]:
        desk, found = Desk(model, served), []
        desk.open()
        jobs = [desk.submit(read_request({"model": "m", "seed": 0, **one}, served)) for one in asked]
        for job in jobs:
            found.append([])
            left = len(job.request.texts) * job.request.copies
            while left:
                event = await asyncio.wait_for(job.events.get(), 60)
                found[-1].append(event)
                left -= isinstance(event, Wrote) and event.piece.finish is not None
                left = 0 if isinstance(event, ApiError) else left
        desk.close()
        assert (desk.running, desk.waiting) == (0, 0)
        return found

    return asyncio.run(collected())


def events(model: LanguageModel, *prompts: Sequence[int], count: int) -> list[list[Event]]:
    """What greedy requests of one text each, decoded together, come to."""
    return requests(model, *({"max_tokens": count, "temperature": 0, "prompt": list(prompt)} for prompt in prompts))


def tokens(found: Sequence[Event]) -> list[int]:
    return [event.piece.token for event in found if isinstance(event, Wrote)]


def equilibrium(solver: eq.Solver | None = None) -> tuple[LanguageModel, UntiedEmbedding]:
    torch.manual_seed(0)
    embedding = UntiedEmbedding(256, 16)
    solver = solver or eq.Picard(tol=1e-3, max_evaluations=30, scope="prefix")
    return LanguageModel(embedding, ContractiveCell(16, 2, 24), Equilibrium(eval_solver=solver)).eval(), embedding


def test_a_text_that_fails_ends_its_own_request_alone(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    embedding = UntiedEmbedding(256, 16)
    model = LanguageModel(embedding, ContractiveCell(16, 2, 24), UnrolledDepth(2)).eval()
    prompts = [b"one text", b"ANOTHER"]
    first, second = (tokens(found) for found in events(model, *prompts, count=6))
    assert first[1] not in (first[0], *second, *prompts[0], *prompts[1])
    with torch.no_grad():
        embedding.rows.weight[first[1]] = torch.nan  # what comes after it
    failed, whole = events(model, *prompts, count=6)
    assert tokens(failed) == first[:2]
    assert isinstance(problem := failed[-1], ApiError)
    assert (problem.status, "not finite" in problem.message) == (500, True)
    assert tokens(whole) == second
    assert "a text could not be written" in caplog.text


@pytest.mark.parametrize("solver", [eq.Picard, eq.Anderson])
@pytest.mark.parametrize("scope", ["prefix", "token", "sample"])
def test_a_solve_without_a_state_fails_its_own_text_alone(
    solver: type[eq.Picard] | type[eq.Anderson], scope: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Eight texts in a batch; of one the second token has no finite embedding."""
    model, embedding = equilibrium(solver(tol=1e-3, max_evaluations=30, scope=scope))
    asked = [{"prompt": [100 + n], "seed": n, "max_tokens": 6} for n in range(8)]
    before = [tokens(found) for found in requests(model, *asked)]
    others = {token for n in range(8) if n != 3 for token in before[n]} | set(range(100, 108))
    bad = next(token for token in before[3] if token not in others)
    with torch.no_grad():
        embedding.rows.weight[bad] = torch.nan
    after = requests(model, *asked)
    place = before[3].index(bad) + 1
    assert tokens(after[3]) == before[3][:place]
    assert place == 6 or isinstance(after[3][-1], ApiError)
    assert [tokens(found) for n, found in enumerate(after) if n != 3] == [before[n] for n in range(8) if n != 3]


def test_texts_are_those_of_the_library_however_many_there_are() -> None:
    """More texts than places, prompts in parts, efforts beside each other: each text as a writer alone makes it."""
    model, _ = equilibrium()
    served = replace(SERVED, solves=True, limits=ServerLimits(max_batch=3, prompt_part=8))
    asked: list[dict[str, Any]] = [
        {"prompt": "a long prompt that is read in parts " * (1 + n % 2), "n": 1 + 4 * (n == 2), "seed": 10 * n}
        | {"max_tokens": 20 + n}
        | ({"max_evaluations": 2} if n == 3 else {})
        for n in range(6)
    ]
    for one, found in zip(asked, requests(model, *asked, served=served), strict=True):
        (wanted,) = (request := read_request({"model": "m", **one}, served)).texts
        writer = Writer(model, served.tokenizer, served.window, depth_at(model, request.effort))
        prompt = writer.read(wanted, 8)
        while not prompt.read:
            prompt.advance()
        alone = writer.start(prompt, range(wanted.copies))
        while writer.texts:
            alone += writer.step()
        for copy in range(wanted.copies):
            pieces = [piece for text, piece in alone if text.copy == copy and isinstance(piece, Piece)]
            wrote = [event.piece for event in found if isinstance(event, Wrote) and event.index == copy]
            assert [piece.token for piece in wrote] == [piece.token for piece in pieces]
            assert "".join(piece.text for piece in wrote) == "".join(piece.text for piece in pieces)


def test_a_turn_that_fails_ends_its_requests_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = equilibrium()
    step = Writer.step
    calls = iter(range(10**6))

    def failing(writer: Writer, texts: Any = None) -> Written:
        if next(calls) == 2:
            raise RuntimeError("out of memory")
        return step(writer, texts)

    monkeypatch.setattr(Writer, "step", failing)
    served = replace(SERVED, limits=ServerLimits(max_batch=1, prompt_part=8))
    first, second = requests(model, *({"prompt": "a", "max_tokens": 5, "seed": n} for n in (1, 2)), served=served)
    failed, whole = (first, second) if isinstance(first[-1], ApiError) else (second, first)
    assert isinstance(problem := failed[-1], ApiError)
    assert "out of memory" in problem.message
    assert len(tokens(whole)) == 5


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[Signal]:
    """A model that hangs in its first step, until it is released."""
    released, step = Signal(), Writer.step

    def waiting(writer: Writer, texts: Any = None) -> Written:
        released.wait(60)
        return step(writer, texts)

    monkeypatch.setattr(Writer, "step", waiting)
    yield released
    released.set()


def test_deadlines_and_health_do_not_depend_on_the_model(hanging: Signal) -> None:
    model, _ = equilibrium()
    limits = ServerLimits(request_timeout=0.5, stall_timeout=0.8)
    served = replace(SERVED, limits=limits)

    async def ask() -> None:
        desk = Desk(model, served)
        desk.open()
        asked = read_request({"model": "m", "prompt": "a", "max_tokens": 5}, served)
        job = desk.submit(asked)
        found = [await asyncio.wait_for(job.events.get(), 30) for _ in range(2)]
        assert isinstance(found[0], Wrote)
        assert isinstance(problem := found[1], ApiError)
        assert (problem.status, desk.running, desk.waiting) == (504, 0, 0)
        while not desk.stalled:
            await asyncio.sleep(0.05)
        with pytest.raises(ApiError, match="does not answer for") as refused:
            desk.submit(asked)
        assert refused.value.status == 503
        hanging.set()
        desk.close()
        while desk._worker._thread.is_alive():
            await asyncio.sleep(0.01)
        with pytest.raises(ApiError, match="does not answer any more"):
            desk.check()

    asyncio.run(ask())


def test_the_end_comes_in_time_though_the_model_hangs(hanging: Signal) -> None:
    model, _ = equilibrium()
    served = replace(SERVED, limits=ServerLimits(shutdown_timeout=0.2))

    async def ask() -> None:
        desk = Desk(model, served)
        desk.open()
        job = desk.submit(read_request({"model": "m", "prompt": "a", "max_tokens": 5}, served))
        await asyncio.wait_for(job.events.get(), 30)
        desk.stop()
        event = await asyncio.wait_for(job.events.get(), 30)
        assert isinstance(event, ApiError)
        assert (event.status, event.code) == (503, "shutting_down")
        with pytest.raises(ApiError, match="shutting down"):
            desk.check()
        desk.close()
        assert not desk.ended(0.1)
        hanging.set()
        assert desk.ended(30)

    asyncio.run(ask())


def test_a_client_that_fills_the_queue_keeps_no_other_out() -> None:
    model, _ = equilibrium()
    served = replace(SERVED, limits=ServerLimits(max_queue=8))

    async def ask() -> None:
        desk = Desk(model, served)
        desk.open()
        eight, two = (read_request({"model": "m", "prompt": "a", "n": n}, served) for n in (8, 2))
        desk.submit(eight, "a")
        for client, taken in (("a", False), ("b", True), ("b", True), ("b", False), ("c", True), ("c", False)):
            if taken:
                desk.submit(two, client)
            else:
                with pytest.raises(ApiError, match="texts wait already") as refused:
                    desk.submit(two, client)
                assert refused.value.status == 429
        desk.close()

    asyncio.run(ask())
