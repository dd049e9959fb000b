"""How much memory there is and how much of it is free, a container's limit included."""

import os
from pathlib import Path

import torch

_SYSTEM = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")


def total_memory(device: torch.device) -> int | None:
    """Bytes of a device's memory, on the CPU a container's limit at most; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    known = [limit for limit in (_system("MemTotal"), _number(_GROUP / "memory.max")) if limit is not None]
    if known:
        return min(known)
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def available_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated without swapping or reaching a container's limit; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    system, limit = _system("MemAvailable"), _number(_GROUP / "memory.max")
    if limit is None:
        return system
    # Cached files count as used, but can be dropped.
    left = limit - (_number(_GROUP / "memory.current") or 0) + (_entry(_GROUP / "memory.stat", "inactive_file") or 0)
    return left if system is None else min(system, left)


def _system(name: str) -> int | None:
    kibibytes = _entry(_SYSTEM, f"{name}:")
    return None if kibibytes is None else kibibytes * 1024


def _entry(path: Path, name: str) -> int | None:
    return next((int(line.split()[1]) for line in _lines(path) if line.startswith(f"{name} ")), None)


def _number(path: Path) -> int | None:
    """The number in a file of a control group; None without one."""
    text = "".join(_lines(path))
    return int(text) if text.isdecimal() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
