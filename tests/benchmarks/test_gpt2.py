"""The network beside the model has its weights, and all figures are there."""

from argparse import Namespace

import pytest
from rich.console import Console

import equilibria as eq
from benchmarks import gpt2


@pytest.mark.slow  # both are compiled
def test_the_other_network_has_about_as_many_weights_and_figures_are_those_of_both():
    pytest.importorskip("transformers")
    model = eq.load("demo")
    assert isinstance(model, eq.LanguageModel)
    ours, theirs = (sum(parameter.numel() for parameter in one.parameters()) for one in (model, gpt2.beside(model)))
    assert theirs == pytest.approx(ours, rel=0.2)
    console = Console(quiet=True)
    result = gpt2.measure(Namespace(run=None, tokens=3, temperature=0.0, guesses=[2], rounds=2), console)
    assert result["figures"]["writing"].keys() == {
        "GPT-2",
        "GPT-2, compiled",
        "ours",
        "ours, compiled",
        "ours, 2 guesses",
    }
    for name in ("ours, compiled", "ours, 2 guesses"):
        assert result["figures"]["writing"][name]["tokens_as_without"] == 3
    for rows in result["figures"].values():
        assert rows["GPT-2"]["over_gpt2"]["median"] == 1.0
        assert all(figures["seconds_per_token"]["median"] > 0 for figures in rows.values())
    gpt2.show(result, console)
