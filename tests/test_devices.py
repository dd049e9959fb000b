"""`devices.py` in a process of its own: once PyTorch knows the stand-in, DDP and FSDP take it for the accelerator."""

import subprocess
import sys
from pathlib import Path

from processes import environment


def test_on_a_device_of_our_own() -> None:
    file = Path(__file__).with_name("devices.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(file)]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=1200, check=False)
    assert ended.returncode == 0, ended.stdout[-5000:]
    assert " passed in " in ended.stdout
