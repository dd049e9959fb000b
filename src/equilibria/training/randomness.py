"""Seeds, and the state of the random number generators that training draws from."""

import torch
from torch import Tensor

from equilibria.devices import own_generator


def seed_everything(seed: int) -> None:
    """Seeds every generator that initialisation and training draw from; call it before the model is built."""
    torch.manual_seed(seed)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of torch's generators, on the CPU and on the model's accelerator, if it is on one."""
    state = {"cpu": torch.get_rng_state()}
    if (own := own_generator(device)) is not None:
        state[device.type] = own.get_state()
    return state


def restore_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Restores the generators to what `random_state` returned.

    Raises:
        KeyError: the state has no generator of the CPU.
        RuntimeError: a state is of another length.
    """
    torch.set_rng_state(state["cpu"])
    if (own := own_generator(device)) is not None and device.type in state:
        own.set_state(state[device.type])
