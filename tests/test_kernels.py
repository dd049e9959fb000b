"""The kernels that a list of `kernels.py` asks for are those that compute."""

import os
import sys

import pytest
import torch

import kernels


def test_the_environment_has_its_effect() -> None:
    """In `make test` little is asked for; in `make test-kernels` each list is."""
    capability = os.environ.get("ATEN_CPU_CAPABILITY")
    assert capability in (None, torch.backends.cpu.get_cpu_capability().lower())
    if threads := os.environ.get("OMP_NUM_THREADS"):
        assert torch.get_num_threads() == int(threads)
    if os.environ.get("ONEDNN_MAX_CPU_ISA") == "AVX2":
        assert not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def test_memory_begins_where_it_should() -> None:
    linear = torch.nn.Linear(3, 5)
    made = (linear.weight, torch.randn(2, 3), torch.zeros(7), torch.tensor([1.0]), torch.ones(4).new_empty(2))
    odd = "odd_alignment" in sys.modules
    assert {tensor.data_ptr() % 64 for tensor in made} == {4 if odd else 0}
    assert {tensor.storage_offset() for tensor in made} == {0}
    assert torch.zeros(3, dtype=torch.float64).data_ptr() % 64 == (8 if odd else 0)
    assert linear.weight.is_leaf
    assert linear.weight.requires_grad
    assert torch.randn(3, requires_grad=True).is_leaf


def test_a_name_that_is_no_list_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert kernels.main(["mkl"]) == 2
    assert "no such list: mkl; there are plain" in capsys.readouterr().err
