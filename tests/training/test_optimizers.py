from torch import nn

from equilibria.configuration.recipe import TrainingRecipe
from equilibria.training.optimizers import adamw, decayed_and_undecayed


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.inner = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.frozen = nn.Linear(4, 4, bias=False).requires_grad_(False)


def test_only_matrices_decay() -> None:
    decayed, undecayed = decayed_and_undecayed(Small())
    assert set(decayed) == {"inner.weight"}
    assert set(undecayed) == {"embedding.weight", "inner.bias", "norm.weight", "norm.bias"}


def test_the_recipe_reaches_the_groups() -> None:
    recipe = TrainingRecipe(learning_rate=0.25, weight_decay=0.5, beta1=0.8, beta2=0.9)
    decayed, undecayed = adamw(Small(), recipe).param_groups
    assert (decayed["lr"], decayed["weight_decay"], decayed["betas"]) == (0.25, 0.5, (0.8, 0.9))
    assert undecayed["weight_decay"] == 0.0
