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

PLAIN = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"}
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
# Threads that wait asleep leave the cores to the list that runs beside theirs.
TWO_THREADS = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}
ODD = ("-p", "odd_alignment")

LISTS: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "plain": (PLAIN, ()),
    "avx2": (AVX2, ()),
    "two-threads": (TWO_THREADS, ()),
    "odd": ({}, ODD),
    "odd-plain": (PLAIN, ODD),
    "odd-avx2-two-threads": (AVX2 | TWO_THREADS, ODD),
}
"""Environment and options of pytest, by name. The libraries know nothing of each other, so a list speaks to all of them
at once. In the odd ones, weights and inputs start 4 bytes off a boundary of 64. `make test` is the list of one thread
and the libraries' own choice."""

NUMERICAL = (
    *("tests/test_kernels.py", "tests/deq/test_fixed_point.py", "tests/test_penalties.py", "tests/solvers"),
    *("tests/gradients", "tests/diagnostics", "tests/nn", "tests/cells", "tests/depths", "tests/models"),
    *("tests/interop/test_gpt2.py", "tests/interop/hugging_face/test_modeling.py"),
    "tests/interop/hugging_face/test_cache.py",
)
"""The tests whose results are numbers."""

LEFT_OUT = (
    "--ignore=tests/gradients/test_training_tools.py",  # processes, compilers and checkpoints
    "--ignore=tests/gradients/test_surroundings.py",  # the same
    "--deselect=tests/interop/hugging_face/test_modeling.py::test_left_padded_rows_are_written_as_alone",
    "--deselect=tests/interop/hugging_face/test_modeling.py::test_greedy_text_is_our_own",
)
"""What takes long and would show nothing more."""


def run(name: str) -> bool:
    """Runs the tests under one list and prints how they fared; whether all passed."""
    variables, options = LISTS[name]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, *LEFT_OUT, *NUMERICAL]
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
