"""Runs as jobs of a Ray cluster, through Ray's Jobs API.

    package.py    what travels                client.py    submit, status, logs, stop
    arrival.py    what the job does first

Relative paths of a configuration travel with the job; absolute paths and hub names are the cluster's own. The run's
folder has to be on storage that all nodes share, so `output_dir` is absolute: the same configuration submitted again
goes on there.
"""
