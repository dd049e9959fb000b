"""`equilibria bench scaling`, on the smallest model: real processes under torchrun."""

import json

import pytest

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
