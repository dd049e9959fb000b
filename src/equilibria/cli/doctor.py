"""`equilibria doctor`."""

import json as json_format
from dataclasses import asdict

import torch
from cyclopts import App
from rich.console import Console
from rich.table import Table
from rich.text import Text

from equilibria.distributed import training_device
from equilibria.machine.checks import Finding, examine
from equilibria.machine.description import Section, describe

command = App(name="doctor")


@command.default
def doctor(*, json: bool = False) -> int:
    """Say what training would run on here, and check in about ten seconds that it works; exit code 1 if it does not.

    Args:
        json: print everything as one JSON object and nothing else.
    """
    device, console = torch.device(training_device("auto")), Console(quiet=json)
    sections = describe(device)
    for heading, section in sections.items():
        console.print(heading, style="bold")
        console.print(_lines(section))
    console.print("self-check", style="bold")
    findings = examine(device, lambda finding: console.print(_line(finding)))
    ok = all(finding.ok for finding in findings)
    if json:
        print(json_format.dumps({**sections, "checks": [asdict(finding) for finding in findings], "ok": ok}))
    else:
        console.print("everything works" if ok else "something does not work; the line above that begins with failed")
    return 0 if ok else 1


def _lines(section: Section) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(min_width=15)
    table.add_column()
    for name, value in section.items():
        table.add_row(f"  {name}", Text(value))
    return table


def _line(finding: Finding) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(width=8)
    table.add_column()
    state = Text("  ok", "green") if finding.ok else Text("  failed", "bold red")
    table.add_row(state, Text(f"{finding.name}: {finding.detail} ({finding.seconds:.1f} s)"))
    return table
