"""What a configuration may say, read and checked in milliseconds: no torch, no Ray.

load, overrides, errors       a YAML file and `--set` -> SweepConfig, or a line for each fault
files, machine                whether the files, GPUs and folders are there that it names
run, plan, sweep              one training; with stages; with the sections of other verbs: each extends the one before
stages, predefined_plans, stage_runs   stages and their settings; predefined plans as stages; a stage as a run
compare, study, coarse        sections of the verbs that train many runs; that of `tune` is in orchestrator/searches
cluster, detection, tracking  other sections
derived                       a configuration with changes, as another configuration
page                          the page of all keys
"""
