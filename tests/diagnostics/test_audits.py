"""Evaluation mode is left as it was found, module by module."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import equilibria as eq
from distributed_cases import IMPLICIT, language_model
from equilibria.diagnostics import Audit
from equilibria.diagnostics.audits import evaluating


def frozen_in_part() -> tuple[nn.Module, nn.Module]:
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.Linear(2, 2))).train()
    model[1].eval()
    return model, model[1]


def test_every_module_is_back_in_its_mode_even_after_an_error():
    model, frozen = frozen_in_part()
    during = []

    def fail() -> None:
        with evaluating(model):
            during.extend(module.training for module in model.modules())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not any(during)
    assert model.training
    assert not any(module.training for module in frozen.modules())


@pytest.mark.parametrize("use", ["audit", "generate"])
def test_what_is_frozen_stays_frozen(use: str):
    model = language_model(IMPLICIT).train()
    model.cell.eval()
    tokens = torch.arange(6).view(1, 6)
    if use == "audit":
        eq.audit_causality(model, tokens)
    else:
        model.generate(tokens, max_new_tokens=2)
    assert model.training
    assert not model.cell.training


def test_an_audit_says_what_it_found():
    assert str(Audit(0.0, 3)) == str(Audit(0.0, 3, by_design=True)) == "nothing leaks"
    assert str(Audit(0.25, 3)) == "a logit changes by 0.25 (position 3)"
    assert str(Audit(0.25, 3, by_design=True)) == "not causal, by design: tokens see those after them"


def test_a_model_that_says_nothing_is_held_to_causality():
    audit = eq.audit_causality(language_model(IMPLICIT), torch.arange(6).view(1, 6))
    assert audit.holds
    assert not audit.by_design
