"""Ray for everyone else: sessions, resources, tasks and jobs.

session     Ray for one command, and how Prometheus finds it; whether a run fits, and how many do
pool        workers that each hold a model; many calls of one function
jobs/       a command that runs on the cluster
"""
