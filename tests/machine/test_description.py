import platform

import torch

from equilibria.machine.description import attention_kernels, describe, usable_cores

CPU = torch.device("cpu")


def test_it_names_what_there_is() -> None:
    found = describe(CPU)
    assert list(found) == ["software", "machine", "training"]
    assert platform.python_version() in found["software"]["Python"]
    assert torch.__version__ in found["software"]["PyTorch"]
    assert f"{usable_cores()} cores usable" in found["machine"]["processor"]
    assert "GiB free" in found["machine"]["disk here"]
    assert found["training"]["threads"].startswith(f"{torch.get_num_threads()} in an operation")
    assert all(value for section in found.values() for value in section.values())


def test_kernels_that_take_a_models_heads() -> None:
    """PyTorch's plain products take everything; the memory-efficient kernel is for CUDA alone."""
    for masked in (False, True):
        kernels = attention_kernels(CPU, masked)
        assert "plain products" in kernels
        assert "memory-efficient" not in kernels
