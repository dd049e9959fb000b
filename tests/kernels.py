"""The numerical tests under other kernels: `kernels.py [NAME ...]`, or all of them; `make test-kernels` calls it.

Linear-algebra libraries choose their kernels by the processor's maker, by what it can do, by the number of threads and
by where memory begins. What holds with one processor's choice alone is no property of this library, so the same tests
run with the choices of others. The variables are read when PyTorch is loaded: each list has a process of its own, and
two run at a time.
"""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from processes import ROOT, environment

ODD = ("-p", "odd_alignment")
"""Weights and inputs that start 4 bytes off a boundary of 64."""

WITHOUT_VECTORS = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE"}
WITH_AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}

LISTS: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "aten-default": ({"ATEN_CPU_CAPABILITY": "default"}, ()),
    "aten-avx2": ({"ATEN_CPU_CAPABILITY": "avx2"}, ()),
    "mkl-compatible": ({"MKL_CBWR": "COMPATIBLE"}, ()),
    "mkl-avx2": ({"MKL_CBWR": "AVX2"}, ()),
    "onednn-avx2": ({"ONEDNN_MAX_CPU_ISA": "AVX2"}, ()),
    "two-threads": ({"OMP_NUM_THREADS": "2"}, ()),
    "odd": ({}, ODD),
    "odd-without-vectors": (WITHOUT_VECTORS, ODD),
    "odd-avx2-two-threads": (WITH_AVX2 | {"OMP_NUM_THREADS": "2"}, ODD),
}
"""Environment and options of pytest, by name. `make test` itself is the list of one thread and PyTorch's own choice."""

NUMERICAL = (
    *("tests/test_kernels.py", "tests/test_fixed_point.py", "tests/solvers", "tests/gradients", "tests/diagnostics"),
    *("tests/nn", "tests/cells", "tests/depths", "tests/models"),
    *("tests/interop/test_gpt2.py", "tests/interop/hugging_face/test_modeling.py"),
)


def run(name: str) -> bool:
    """Runs the tests under one list and prints how they fared; whether all passed."""
    variables, options = LISTS[name]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, "-m", "not slow", *NUMERICAL]
    start = time.monotonic()
    ended = subprocess.run(
        command, cwd=ROOT, env=environment() | variables, capture_output=True, text=True, check=False
    )
    passed = ended.returncode == 0
    summary = (ended.stdout.splitlines() or [""])[-1]
    print(f"{name:22} {time.monotonic() - start:4.0f} s  {summary}", flush=True)
    if not passed:
        print(ended.stdout + ended.stderr, flush=True)
    return passed


def main(names: list[str]) -> int:
    """Runs the lists of those names, or all; returns 0 if all passed."""
    if unknown := set(names) - LISTS.keys():
        print(f"no such list: {', '.join(sorted(unknown))}; there are {', '.join(LISTS)}", file=sys.stderr)
        return 2
    with ThreadPoolExecutor(2) as pool:
        return 0 if all(list(pool.map(run, names or LISTS))) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
