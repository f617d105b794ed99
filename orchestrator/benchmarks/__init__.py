"""Benchmarks of a finished run, base model against result, with EleutherAI's lm-evaluation-harness."""
