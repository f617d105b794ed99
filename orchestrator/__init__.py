"""What is decided, once per run: the mixture of the domains, the plan of the run, what the user sees of it.

It imports `workers`; `workers` never imports it.
"""
