"""The command line: verbs, their arguments, and nothing else."""
