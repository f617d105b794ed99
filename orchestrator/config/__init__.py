"""What a configuration may say, read and checked in milliseconds: no torch, no Ray.

load, errors                  a YAML file and `--set` -> SweepConfig, or a line for each fault
machine                       whether the files, GPUs and folders are there that it names
run, plan, sweep              one training; with stages; with the sections of other verbs: each extends the one before
stages, predefined_plans      settings of stages; predefined plans as stages
sections                      of the verbs that train many runs; that of `tune` is in orchestrator/searches
cluster, detection, tracking  other sections
derived                       a configuration with changes, as another configuration
page                          the page of all keys
"""
