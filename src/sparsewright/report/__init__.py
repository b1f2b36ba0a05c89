"""Floor 9: results -> HTML, Markdown and one page for a meeting. Measures nothing."""

from .schema import Results, read_results
from .write import summary, write_report

__all__ = ["Results", "read_results", "summary", "write_report"]
