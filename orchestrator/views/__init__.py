"""All output: number formats, tables and live views for the terminal, HTML pages.

format, palette        numbers, names and colours, for the terminal and for pages
table                  ResultTable: one table for the terminal, a page and a CSV file
live                   what live views share: terminal (one run), runs (many), references, benchmarks
summary, verdict       what came of a run
findings, weights      the state of its data and of its shares
report/                HTML pages
errors, redirect       refusals as one line; third-party output to a log file
"""
