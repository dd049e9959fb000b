"""`equilibria doctor`."""

import json as json_format
from dataclasses import asdict

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from equilibria.distributed import training_device
from equilibria.machine.checks import Finding, examine
from equilibria.machine.description import describe


def doctor(*, json: bool = False) -> int:
    """Show what training would run on, and check in about ten seconds that it works; exit code 1 if it does not.

    Args:
        json: print everything as one JSON object and nothing else.
    """
    device, console = torch.device(training_device("auto")), Console(quiet=json)
    sections = describe(device)
    for heading, section in sections.items():
        console.print(heading, style="bold")
        console.print(_rows(15, *((f"  {name}", value) for name, value in section.items())))
    console.print("self-check", style="bold")
    findings = examine(device, lambda finding: console.print(_line(finding)))
    ok = all(finding.ok for finding in findings)
    if json:
        print(json_format.dumps({**sections, "checks": [asdict(finding) for finding in findings], "ok": ok}))
    else:
        console.print("everything works" if ok else "a check failed; see above")
    return 0 if ok else 1


def _rows(width: int, *rows: tuple[str | Text, str]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(min_width=width)
    table.add_column()
    for name, value in rows:
        table.add_row(name, Text(value))
    return table


def _line(finding: Finding) -> Table:
    state = Text("  ok", "green") if finding.ok else Text("  failed", "bold red")
    return _rows(8, (state, f"{finding.name}: {finding.detail} ({finding.seconds:.1f} s)"))
