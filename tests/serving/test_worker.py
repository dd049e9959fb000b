"""The thread that runs the model: what becomes of requests that are decoded together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
import torch

from equilibria.cells import ContractiveCell
from equilibria.data.tokenizers import byte_tokenizer
from equilibria.depths import UnrolledDepth
from equilibria.models import LanguageModel
from equilibria.nn import UntiedEmbedding
from equilibria.serving.errors import ApiError
from equilibria.serving.request import Served, ServerLimits, read_request
from equilibria.serving.worker import Event, Worker, Wrote

SERVED = Served("m", byte_tokenizer(), 40, False, True, ServerLimits())


def events(model: LanguageModel, *prompts: Sequence[int], count: int) -> list[list[Event]]:
    """What greedy requests of one text each, decoded together, come to."""

    async def collected() -> list[list[Event]]:
        worker, found = Worker(model, SERVED), []
        asked = {"model": "m", "max_tokens": count, "temperature": 0, "seed": 0}
        jobs = [worker.submit(read_request({**asked, "prompt": list(prompt)}, SERVED)) for prompt in prompts]
        worker.start()
        for job in jobs:
            found.append([await job.events.get()])
            while isinstance(last := found[-1][-1], Wrote) and last.piece.finish is None:
                found[-1].append(await job.events.get())
        worker.stop()
        return found

    return asyncio.run(collected())


def tokens(found: Sequence[Event]) -> list[int]:
    return [event.piece.token for event in found if isinstance(event, Wrote)]


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
    assert (problem.status, "logits are not finite" in problem.message) == (500, True)
    assert tokens(whole) == second
    assert "a text could not be written" in caplog.text
