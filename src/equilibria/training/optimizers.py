"""The optimizer of a recipe."""

from torch import nn
from torch.optim import AdamW

from equilibria.configuration.recipe import TrainingRecipe


def decayed_and_undecayed(model: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """Trainable parameters by name: matrices, which weight decay shrinks, and the rest.

    Embeddings (and an output matrix tied to one), biases, gains and norms are the rest: a scale has no reason
    to be near zero, and rare words' vectors would shrink at every step that does not mention them.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag)}
    decayed: dict[str, nn.Parameter] = {}
    undecayed: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            matrix = parameter.ndim >= 2 and id(parameter) not in embeddings
            (decayed if matrix else undecayed)[name] = parameter
    return decayed, undecayed


def adamw(model: nn.Module, recipe: TrainingRecipe) -> AdamW:
    """AdamW (Loshchilov and Hutter, 2019) with decay on matrices alone.

    Args:
        model: already on its device.
        recipe: peak learning rate, betas and weight decay.
    """
    decayed, undecayed = decayed_and_undecayed(model)
    groups = [
        {"params": list(decayed.values()), "weight_decay": recipe.weight_decay},
        {"params": list(undecayed.values()), "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=recipe.learning_rate, betas=(recipe.beta1, recipe.beta2), fused=True)
