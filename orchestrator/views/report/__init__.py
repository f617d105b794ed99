"""Pages: report.html of one run, and comparisons of several, which the terminal shows as a table."""
