"""What a step of a model costs."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

import equilibria as eq
from equilibria.cells import Memory, TransformerXLCell
from equilibria.data.batches import ZipfBatches
from equilibria.depths import Depth, Equilibrium, UnrolledDepth
from equilibria.measuring.steps import Contender, alternate, saved_by_step
from equilibria.models import LanguageModel
from equilibria.nn import TiedEmbedding


def model_of(depth: Depth, vocabulary_size: int = 50, memory_length: int = 0) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(
        TiedEmbedding(vocabulary_size, 8), TransformerXLCell(8, 2, 16), depth, memory_length=memory_length
    )


@pytest.mark.parametrize("vocabulary_size", [50, 5000])
def test_memory_of_a_step_grows_with_explicit_depth_alone(vocabulary_size: int) -> None:
    def saved(depth: Depth) -> int:
        return saved_by_step(model_of(depth, vocabulary_size), ZipfBatches(50, 2, 5))

    two, four, eight = (saved(UnrolledDepth(applications)) for applications in (2, 4, 8))
    assert eight - four == 2 * (four - two) > 0
    assert saved_by_step(model_of(UnrolledDepth(4), 50), ZipfBatches(50, 2, 5)) == four  # the softmax has no part in it
    checkpointed = saved(UnrolledDepth(8, checkpoint=True))
    assert checkpointed < saved(UnrolledDepth(2))
    deep = Equilibrium(eq.Picard(tol=1e-9, max_evaluations=30), eq.Implicit(), residual_penalty=0.0)
    shallow = replace(deep, solver=eq.Picard(tol=1e-9, max_evaluations=3))
    assert saved(deep) == saved(shallow) < two


def test_a_step_has_a_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    given_lengths: list[int] = []
    bind = TransformerXLCell.bind

    def watched(cell: TransformerXLCell, inputs: torch.Tensor, memory: Memory | None) -> Any:
        given_lengths.append(0 if memory is None else memory.length)
        return bind(cell, inputs, memory)

    monkeypatch.setattr(TransformerXLCell, "bind", watched)
    with_memory = saved_by_step(model_of(UnrolledDepth(2), memory_length=3), ZipfBatches(50, 2, 5))
    assert given_lengths == [0, 3]
    assert with_memory > saved_by_step(model_of(UnrolledDepth(2)), ZipfBatches(50, 2, 5))


@dataclass
class Recorder(Contender):
    """Notes its turns instead of taking them."""

    name: str = ""
    turns: list[str] = field(default_factory=list)

    def step(self) -> None:
        self.turns.append(self.name)
        self.training.append(len(self.turns))

    def evaluate(self) -> None:
        self.turns.append(self.name.upper())
        self.inference.append(len(self.turns))


def test_turns_alternate_and_the_first_round_does_not_count() -> None:
    turns: list[str] = []
    contenders = [Recorder(None, (), name=name, turns=turns) for name in "abc"]  # pyright: ignore[reportArgumentType]
    alternate(contenders, 4)
    assert " ".join(turns) == "a b c A B C a b c A B C b c a B C A c a b C A B a b c A B C"
    assert contenders[1].training == [8, 13, 21, 26]
    assert contenders[1].inference == [11, 16, 24, 29]
