"""Free memory: of this machine, and as files of a container tell it."""

from pathlib import Path

import pytest
import torch

from equilibria.machine import memory
from equilibria.machine.memory import available_memory, total_memory

CPU = torch.device("cpu")
GIB = 2**30


def test_of_this_machine() -> None:
    total, free = total_memory(CPU), available_memory(CPU)
    assert total is not None
    assert free is not None
    assert 2**28 < free < total


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 16 GiB, 8 of them free, as Linux tells it."""
    (tmp_path / "meminfo").write_text(f"MemTotal: {16 * 2**20} kB\nMemFree: 1 kB\nMemAvailable: {8 * 2**20} kB\n")
    monkeypatch.setattr(memory, "_SYSTEM", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_GROUP", tmp_path)
    return tmp_path


def test_without_a_limit(told: Path) -> None:
    assert (total_memory(CPU), available_memory(CPU)) == (16 * GIB, 8 * GIB)
    (told / "memory.max").write_text("max\n")
    assert (total_memory(CPU), available_memory(CPU)) == (16 * GIB, 8 * GIB)


def test_in_a_container(told: Path) -> None:
    (told / "memory.max").write_text(f"{4 * GIB}\n")
    (told / "memory.current").write_text(f"{3 * GIB}\n")
    (told / "memory.stat").write_text(f"anon 5\ninactive_file {2 * GIB}\n")
    assert (total_memory(CPU), available_memory(CPU)) == (4 * GIB, 3 * GIB)
    (told / "memory.max").write_text(f"{64 * GIB}\n")
    assert (total_memory(CPU), available_memory(CPU)) == (16 * GIB, 8 * GIB)


def test_where_nothing_tells(told: Path) -> None:
    (told / "meminfo").unlink()
    assert available_memory(CPU) is None
