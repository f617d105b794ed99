"""Sets of runs, of which one run is the smallest: every verb that trains comes through here, `raymix run` as well.

graph, crews, work      trains each run once, one at a time or side by side, in the Ray session of one command
stages                  runs and plans of stages as nodes of the graph; `raymix run`
references              reference losses, measured by the runs that need them or by `raymix reference`
compare, study, coarse, tune    a verb each, from its section of the configuration to its page
results                 what most of these verbs leave: a record, a table and a page

Random search, Optuna and ASHA are the exception: Ray Tune trains their runs (tune/sampling.py).
"""
