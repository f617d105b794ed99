"""What a person looks at afterwards: report.html of one run or of several, and a comparison for the terminal."""

from orchestrator.views.report.comparison import comparison_table
from orchestrator.views.report.html import write_report

__all__ = ["comparison_table", "write_report"]
