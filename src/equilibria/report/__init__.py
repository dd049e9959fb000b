"""One self-contained HTML page per run."""

from equilibria.report.writing import write_report

__all__ = ["write_report"]
