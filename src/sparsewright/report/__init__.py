"""Floor 9: results -> HTML, Markdown and one page for a meeting. Measures nothing."""

from .power_meter import PowerLog, read_power_log, with_assumed_watts, with_power_log
from .schema import Results, read_results
from .write import summary, write_report

__all__ = [
    "PowerLog",
    "Results",
    "read_power_log",
    "read_results",
    "summary",
    "with_assumed_watts",
    "with_power_log",
    "write_report",
]
