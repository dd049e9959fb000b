"""Seeds, and the state of the random number generators that training draws from."""

import torch
from torch import Tensor


def seed_everything(seed: int) -> None:
    """Seeds every generator that initialisation and training draw from; call it before the model is built."""
    torch.manual_seed(seed)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of torch's generators, on the CPU and on the model's accelerator, if it is on one."""
    state = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        state[device.type] = torch.get_device_module(device).get_rng_state()
    return state


def restore_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Restores the generators to what `random_state` returned.

    Raises:
        KeyError: the state has no generator of the CPU.
        RuntimeError: a state is of another length.
    """
    torch.set_rng_state(state["cpu"])
    if device.type in state.keys() - {"cpu"}:
        torch.get_device_module(device).set_rng_state(state[device.type])
