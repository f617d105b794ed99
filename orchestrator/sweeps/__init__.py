"""Sets of runs, of which one run is the smallest: every verb that trains comes through here, `raymix run` as well.

run                     `raymix run`: one training or a plan of stages, and several of them at once
graph, crews, work      trains each run once, one at a time or side by side, in the Ray session of one command
references              reference losses, measured by the runs that need them or by `raymix reference`
stages                  the stages of a plan, what they leave, and the plan's page
compare, study, coarse, tune    a verb each, from its section of the configuration to its page

Random search, Optuna and ASHA are the exception: Ray Tune trains their runs (tune/sampling.py).
"""
