"""A language model with an adaptive embedding and softmax: the promises hold, it trains, it writes."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import equilibria as eq
from equilibria.cells import ContractiveCell
from equilibria.data.batches import TrainingStream
from equilibria.models import LanguageModel
from equilibria.nn import AdaptiveEmbedding
from equilibria.optimization import AdamW, Muon, Optimizer
from equilibria.training.loop import TrainingLoop
from tiny import TRAINING


def model(div_val: int = 2) -> LanguageModel:
    torch.manual_seed(0)
    embedding = AdaptiveEmbedding(31, 16, cutoffs=(8, 20), div_val=div_val)
    return LanguageModel(embedding, ContractiveCell(16, 2, 32), memory_length=4)


@pytest.mark.parametrize("div_val", [1, 2])
def test_audits_find_exactly_zero(div_val: int) -> None:
    tokens = torch.randint(31, (3, 20), generator=torch.Generator().manual_seed(1))
    assert eq.audit_causality(model(div_val), tokens).leak == 0.0
    assert eq.audit_batch_invariance(model(div_val), tokens).leak == 0.0


def test_it_writes_tokens_of_its_vocabulary() -> None:
    written = model().generate(torch.zeros(2, 1, dtype=torch.long), 5, seed=0)
    assert written.shape == (2, 6)
    assert 0 <= int(written.min()) <= int(written.max()) < 31


@pytest.mark.parametrize("optimizer", [AdamW(), Muon()], ids=["adamw", "muon"])
def test_it_learns_the_frequencies(optimizer: Optimizer) -> None:
    tokens = np.random.default_rng(0).zipf(1.5, 2000).clip(0, 30).astype(np.uint16)
    frequencies = np.bincount(tokens) / len(tokens)
    entropy = -sum(float(p * math.log(p)) for p in frequencies if p)
    batches = TrainingStream(tokens, TRAINING.batch_size, TRAINING.segment_length)
    learning = TrainingLoop(model(), replace(TRAINING, steps=80, optimizer=optimizer, learning_rate=1e-2), batches)
    losses = [float(learning.step()) for _ in range(80)]
    assert losses[0] > entropy + 0.8
    assert sum(losses[-20:]) / 20 < entropy + 0.3
