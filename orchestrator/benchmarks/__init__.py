"""Benchmarks of a finished run, base model against result, by EleutherAI's lm-evaluation-harness.

records.py   tasks.json: what was measured, and on what terms
harness.py   the harness, called with a model that raymix loaded: no remote code, no metric's program unless allowed
driver.py    `raymix evaluate`
view.py      progress and table in the terminal
"""
