"""A language model of trellis cells: segments, chunks, causality and every parameter's gradient."""

from __future__ import annotations

import pytest
import torch

import equilibria as eq
from equilibria.cells import TrellisCell
from equilibria.depths import Depth, Equilibrium, UnrolledDepth
from equilibria.models import LanguageModel
from equilibria.nn.embedding import TiedEmbedding

SOLVER = eq.Picard(tol=1e-11, max_evaluations=300, scope="prefix")


def model(depth: Depth | None = None, chunk_length: int | None = None, **options) -> LanguageModel:
    torch.manual_seed(0)
    cell = TrellisCell(8, 10, 8, dilation=2, normalisation="weight", recurrent_std=0.1, **options)
    depth = depth if depth is not None else Equilibrium(SOLVER, eq.Implicit(), SOLVER)
    return LanguageModel(TiedEmbedding(13, 8), cell, depth, memory_length=2, chunk_length=chunk_length).double()


@pytest.fixture
def tokens():
    return torch.randint(13, (2, 24), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("scan", [False, True], ids=["delayed", "scan"])
def test_segments_and_chunks_equal_the_whole(scan, tokens):
    whole = model(scan=scan)
    whole(tokens, tokens.flip(1)).loss.backward()
    for length in (1, 5, 7):
        chunked = model(scan=scan, chunk_length=length)
        chunked(tokens, tokens.flip(1)).loss.backward()
        for (name, wanted), (_, found) in zip(whole.named_parameters(), chunked.named_parameters(), strict=True):
            torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-3, atol=1e-6, msg=name)
    whole.eval()
    memory, parts = None, []
    for part in tokens.split([1, 9, 3, 11], dim=1):
        output = whole(part, memory=memory)
        memory = output.memory
        parts.append(output.logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole(tokens).logits, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("scan", [False, True], ids=["delayed", "scan"])
def test_it_is_causal_and_batch_invariant_exactly(scan, tokens):
    anderson = eq.Anderson(tol=1e-3, max_evaluations=6, scope="prefix")
    audited = model(Equilibrium(anderson, eq.Implicit(), anderson), scan=scan).float()
    assert eq.audit_causality(audited, tokens).leak == 0.0
    assert eq.audit_batch_invariance(audited, tokens).leak == 0.0


def test_an_explicit_trellis_net_trains_every_parameter(tokens):
    trained = model(UnrolledDepth(6, checkpoint=True), dropout=0.2, weight_dropout=0.2).train()
    trained(tokens, tokens).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in trained.parameters())
