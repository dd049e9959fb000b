"""What training will run on, in words."""

import os
import platform
import shutil
import statistics
import time
import warnings
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import distributed
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from equilibria.machine.memory import available_memory, total_memory
from equilibria.measuring.steps import synchronize

Section = dict[str, str]

_PACKAGES = ("starlette", "transformers", "lm-eval", "onnxscript", "datasets", "tensorboard")
_KERNELS = {
    SDPBackend.CUDNN_ATTENTION: "cuDNN",
    SDPBackend.FLASH_ATTENTION: "flash",
    SDPBackend.EFFICIENT_ATTENTION: "memory-efficient",
    SDPBackend.MATH: "plain products",
}


def describe(device: torch.device) -> dict[str, Section]:
    """The machine, and what of it training on a device will use, by headings."""
    return {"software": _software(), "machine": _machine(), "training": _training(device)}


def _software() -> Section:
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    return {
        "equilibria": _version("equilibria") or "not installed, run from its sources",
        "Python": platform.python_version(),
        "PyTorch": f"{torch.__version__} ({build})",
        "system": platform.platform(terse=True),
        "extras": ", ".join(f"{name} {_version(name) or '(missing)'}" for name in _PACKAGES),
    }


def _machine() -> Section:
    cpu = torch.device("cpu")
    free = shutil.disk_usage(Path()).free
    devices = {
        f"GPU {number}": f"{torch.cuda.get_device_name(number)}, {_memory(torch.device('cuda', number))}"
        for number in range(torch.cuda.device_count())
    }
    return {
        "processor": f"{_processor()}, {usable_cores()} cores usable, {torch.backends.cpu.get_cpu_capability()}",
        "memory": _memory(cpu),
        **(devices or {"GPU": "none"}),
        "disk here": f"{free / 2**30:.1f} GiB free",
    }


def _training(device: torch.device) -> Section:
    ratio = bfloat16_speed(device)
    return {
        "device": str(device),
        "threads": f"{torch.get_num_threads()} in an operation, {torch.get_num_interop_threads()} between operations",
        "precision": f"float32, its products {torch.get_float32_matmul_precision()}",
        "bfloat16": f"products are {ratio:.1f} times as fast as in float32 (measured)",
        "attention": _attention(device, masked=False),
        "with a memory": _attention(device, masked=True),
        "torch.compile": _compiler(device),
        "processes": ", ".join(_backends()) or "one only: no backend",
    }


def usable_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def attention_kernels(device: torch.device, masked: bool) -> list[str]:
    """The kernels of `scaled_dot_product_attention` that take a language model's heads in training: with a mask, as of
    a segment after a memory, or causal."""
    q, k, v = (torch.randn(1, 2, 8, 16, device=device, requires_grad=True) for _ in range(3))
    mask = torch.ones(8, 8, dtype=torch.bool, device=device).tril() if masked else None
    found = []
    for kernel, name in _KERNELS.items():
        with warnings.catch_warnings(), suppress(RuntimeError), sdpa_kernel(kernel):
            warnings.simplefilter("ignore")  # one for each reason why a kernel does not take them
            scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=not masked).sum().backward()
            found.append(name)
    return found


def bfloat16_speed(device: torch.device) -> float:
    """How many times faster a matrix product is in bfloat16 than in float32: the median of alternating rounds."""

    def seconds(matrix: torch.Tensor) -> float:
        synchronize(device)
        start = time.perf_counter()
        for _ in range(4):
            matrix @ matrix  # pyright: ignore[reportUnusedExpression]
        synchronize(device)
        return time.perf_counter() - start

    single = torch.randn(256, 256, device=device)
    half = single.bfloat16()
    ratios = [seconds(single) / seconds(half) for _ in range(8)]
    return statistics.median(ratios[1:])  # without the warm-up


def _attention(device: torch.device, masked: bool) -> str:
    return ", ".join(attention_kernels(device, masked)) or "no kernel"


def _compiler(device: torch.device) -> str:
    """Whether `torch.compile` has a compiler."""
    if device.type == "cuda":
        return "available" if find_spec("triton") else "not available: the package triton is missing"
    names = [os.environ.get("CXX"), "g++", "clang++", "cl"]
    found = [name for name in names if name and shutil.which(name)]
    return f"available, builds with {found[0]}" if found else "not available: there is no C++ compiler"


def _backends() -> list[str]:
    if not distributed.is_available():
        return []
    present = {"gloo": distributed.is_gloo_available(), "nccl": distributed.is_nccl_available()}
    return [name for name, there in present.items() if there]


def _memory(device: torch.device) -> str:
    total, free = total_memory(device), available_memory(device)
    shown = ["not known" if size is None else f"{size / 2**30:.1f} GiB" for size in (total, free)]
    return f"{shown[0]}, {shown[1]} free"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
