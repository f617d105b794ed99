"""Ray for everyone else: sessions, resources, tasks and jobs.

session, targets    Ray for one command, and how Prometheus finds it
resources           whether a run fits, and how many do
tasks, pool         many calls of one function; workers that each hold a model
jobs/               a command that runs on the cluster
"""
