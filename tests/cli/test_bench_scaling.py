"""`equilibria bench scaling`, on the smallest model: real processes under torchrun."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

from benchmarks.scaling import run_to_end
from equilibria.cli.app import main
from processes import environment

SMALL = {
    "width": 32,
    "vocabulary": 64,
    "batch-size": 2,
    "length": 8,
    "steps": 2,
    "warm-up": 1,
    "profiled": 2,
    "rounds": 1,
}


@pytest.mark.slow
def test_steps_communication_and_memory_of_one_and_two_processes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    flags = [text for name, value in SMALL.items() for text in (f"--{name}", str(value))]
    assert main(["bench", "scaling", "--json", *flags]) == 0
    result = json.loads(capsys.readouterr().out)
    one, ddp, fsdp2 = result["contenders"].values()
    assert one["communicating"]["median"] == 0.0
    for two in (ddp, fsdp2):
        assert 0.0 < two["communicating"]["median"] < 1.0
        assert two["step_seconds"]["median"] > 0.0
    assert ddp["weights_megabytes"] == one["weights_megabytes"] > 0
    assert ddp["optimizer_megabytes"] == one["optimizer_megabytes"] > 0
    assert fsdp2["weights_megabytes"] == pytest.approx(ddp["weights_megabytes"] / 2, rel=0.1)
    assert fsdp2["optimizer_megabytes"] == pytest.approx(ddp["optimizer_megabytes"] / 2, rel=0.1)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_workers_that_stand_still_are_ended(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    lines = ["import os, pathlib, sys, time", "pathlib.Path(sys.argv[1], str(os.getpid())).touch()", "time.sleep(3600)"]
    script.write_text("\n".join(lines))
    workers = tmp_path / "workers"
    workers.mkdir()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    started: list[int] = []
    for seconds in (8, 30):  # on a busy machine torchrun takes its time to start them
        with pytest.raises(SystemExit, match=f"did not end within {seconds} seconds"):
            run_to_end([*launcher, str(script), str(workers)], seconds)
        started = [int(path.name) for path in workers.iterdir()]
        if len(started) >= 2:
            break
    assert len(started) >= 2
    deadline = time.monotonic() + 30
    while alive := [pid for pid in started if is_alive(pid)]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.1)
