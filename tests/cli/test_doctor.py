"""`equilibria doctor`."""

import json

import pytest

from equilibria.cli.app import main
from equilibria.machine import checks


def fine(_: object) -> tuple[bool, str]:
    return True, "in order"


def test_lines_for_a_person(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "CHECKS", {"the sky is blue": fine})
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for part in ("software", "processor", "threads", "bfloat16", "ok      the sky is blue: in order", "works"):
        assert part in shown
    assert all(len(line) <= 80 for line in shown.splitlines())


def test_json_and_the_exit_code(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "CHECKS", {"right": fine, "wrong": lambda _: (False, "out of order")})
    assert main(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is False
    assert [(check["name"], check["ok"]) for check in found["checks"]] == [("right", True), ("wrong", False)]
    assert {"software", "machine", "training"} < found.keys()
