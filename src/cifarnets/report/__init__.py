"""Pages that one can look at: a run as a report, and a model that runs in the browser."""

from cifarnets.report.explorer import write_explorer
from cifarnets.report.run_report import write_report

__all__ = ["write_explorer", "write_report"]
