"""Whether a run did good or harm, and how that is said: in summary.json, terminal, report, dashboard and comparisons.

    noise.py        whether a domain's loss differs between two evaluations by more than noise
    divergence.py   whether the training loss rose for good
    deciding.py     the verdict, and what became of each domain
    telling.py      the same in sentences

All of it is pure: numbers in, words out. What the verdicts are stands in orchestrator/run_records.py.
"""
