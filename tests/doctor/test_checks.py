"""Every check passes here, and fails where what it looks for is wrong."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from equilibria.cells import BoundMap, ContractiveCell
from equilibria.doctor import checks
from equilibria.doctor.checks import CHECKS, Finding, examine
from equilibria.fixed_point import fixed_point
from equilibria.gradients import JacobianFree
from equilibria.solvers import Anderson

CPU = torch.device("cpu")


def test_everything_works_here_and_nothing_random_is_disturbed() -> None:
    seen: list[Finding] = []
    before = torch.get_rng_state()
    findings = examine(CPU, seen.append)
    assert torch.equal(torch.get_rng_state(), before)
    assert findings == seen
    assert [finding.name for finding in findings] == list(CHECKS)
    assert [finding.detail for finding in findings if not finding.ok] == []


class Mixing(ContractiveCell):
    """Rows of a batch see each other."""

    def forward(self, z_BLD: Tensor, bound: BoundMap[Any]) -> Tensor:
        return super().forward(z_BLD, bound) + 1e-3 * z_BLD.mean(0, keepdim=True)


def inexact(f: Any, z0: Any, *options: Any) -> Any:
    solution = fixed_point(f, z0, *options)
    return replace(solution, value=solution.value * 1.01)


FAULTS: dict[str, tuple[str, str, object]] = {
    "solvers find": ("fixed_point", "relative error 1e-02", inexact),
    "the implicit gradient": ("Implicit", "relative difference", lambda solver: JacobianFree()),
    "no token sees": ("Anderson", "change of a logit", lambda scope, **options: Anderson(scope="sample", **options)),
    "no row sees": ("ContractiveCell", "change of a logit", Mixing),
    "training lowers": ("TrainingRecipe", "predicts the same", None),
}
"""What is put in the place of a name to break one check, and what the check then says."""


@pytest.mark.parametrize("check", FAULTS)
def test_a_fault_is_found_by_its_check_and_the_others_are_made_all_the_same(
    check: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, detail, fault = FAULTS[check]
    if fault is None:
        whole = checks._recipe
        monkeypatch.setattr(checks, "_recipe", lambda folder: slow(whole(folder)))
    else:
        monkeypatch.setattr(checks, name, fault)
    monkeypatch.setattr(checks, "CHECKS", {key: value for key, value in CHECKS.items() if key.startswith(check)})
    (finding,) = examine(CPU, lambda _: None)
    assert not finding.ok
    assert detail in finding.detail


def slow(recipe: Any) -> Any:
    return replace(recipe, training=replace(recipe.training, learning_rate=1e-9))


def test_a_check_that_raises_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: torch.device) -> tuple[bool, str]:
        raise OSError("no space left on device")

    monkeypatch.setattr(checks, "CHECKS", {"one": broken, "other": lambda _: (True, "fine")})
    one, other = examine(CPU, lambda _: None)
    assert (one.ok, one.detail) == (False, "OSError: no space left on device")
    assert other.ok


def limited_files() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of resources")
def test_where_files_cannot_grow_the_command_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that may write no file above 4 KiB, on a machine whose named network interface there is not."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "absent0")
    command = [sys.executable, "-m", "equilibria", "doctor"]
    ended = subprocess.run(command, capture_output=True, text=True, preexec_fn=limited_files)
    assert ended.returncode == 1, ended.stderr
    lines = [line.split() for line in ended.stdout.splitlines()]
    states = [line[0] for line in lines if line and line[0] in ("ok", "failed")]
    assert states == ["ok", "ok", "ok", "ok", "failed", "failed"]
    assert "File too large" in " ".join(ended.stdout.split())
