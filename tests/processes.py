"""Several processes at the price of one import: `processes.py SIZE FOLDER CASE ...`.

SIZE of them are forked, as torchrun would start them, and each calls the function of that name in `distributed_cases`.
What it returns goes to FOLDER/CASE-RANK.safetensors.
"""

import os
import socket
import subprocess
import sys
import traceback
from importlib import import_module
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

ROOT = Path(__file__).parents[1]


def environment() -> dict[str, str]:
    """For a process that runs the sources of this checkout."""
    found = os.environ.get("PYTHONPATH", "")
    paths = [str(ROOT / "src"), str(ROOT / "tests"), found]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}


def training_process(recipe: Path, *flags: str) -> subprocess.Popen[str]:
    """`equilibria train` in a process of its own, with all that it prints in one pipe."""
    command = [sys.executable, "-m", "equilibria", "train", str(recipe), *flags]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run_cases(size: int, folder: Path, *cases: str) -> dict[str, list[dict[str, Tensor]]]:
    """What each of `size` processes returns, by case; the cases come one after the other."""
    command = [sys.executable, __file__, str(size), str(folder), *cases]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=540, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return {case: [load_file(folder / f"{case}-{rank}.safetensors") for rank in range(size)] for case in cases}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _work(case: str, rank: int, size: int, folder: Path) -> int:
    try:
        save_file(getattr(import_module("distributed_cases"), case)(folder), folder / f"{case}-{rank}.safetensors")
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def fork(case: str, size: int, folder: Path) -> int:
    """Runs one case in processes of its own; returns 0 if all succeeded."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(size)}
    children = []
    for rank in range(size):
        child = os.fork()
        if not child:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size)}
            code = _work(case, rank, size, folder)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        children.append(child)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children)


def main(size: int, folder: Path, cases: list[str]) -> int:
    """Runs the cases; returns 0 if all succeeded."""
    import_module("distributed_cases")  # once, before the forks
    torch.set_num_threads(1)
    return max(fork(case, size, folder) for case in cases)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
