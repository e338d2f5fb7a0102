"""One self-contained HTML page about one run, or comparing several."""

from mpiprop.report.page import write
from mpiprop.report.summary import RunSummary

__all__ = ["RunSummary", "write"]
