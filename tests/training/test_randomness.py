"""The state of random numbers that a checkpoint keeps."""

import pytest
import torch

from equilibria.training.randomness import random_state, restore_random_state


def test_the_generator_of_the_very_device_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    generators = tuple(torch.Generator().manual_seed(seed) for seed in (1, 2))
    monkeypatch.setattr(torch.cuda, "default_generators", generators)
    device = torch.device("cuda", 1)
    kept = random_state(device)
    drawn = [torch.rand(3), *(torch.rand(3, generator=own) for own in generators)]
    restore_random_state(kept, device)
    again = [torch.rand(3), *(torch.rand(3, generator=own) for own in generators)]
    same = [torch.equal(a, b) for a, b in zip(drawn, again, strict=True)]
    assert same == [True, False, True]
    restore_random_state(kept, torch.device("cpu"))
    assert torch.equal(torch.rand(3), drawn[0])
