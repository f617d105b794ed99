"""All output: number formats, tables and live views for the terminal, HTML pages.

format           numbers, names and colours, for the terminal and for pages
table            ResultTable: one table for the terminal, a page and a CSV file
terminal, runs   live views of one run and of many; the state of a run's data
summary          what came of a run
weights          the state of its shares
report/          HTML pages
console          refusals as one line; third-party output to a log file
"""
