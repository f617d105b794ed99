"""Runs as jobs of a Ray cluster, through Ray's Jobs API.

Files at relative paths of a configuration are sent with the job; absolute paths and hub names are looked up on the
cluster. The run's folder must be on storage that all nodes share, so `output_dir` is absolute: submitting the same
configuration again resumes the run there.
"""
