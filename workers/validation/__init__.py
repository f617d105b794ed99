"""Held-out losses by domain: which examples, the loss of each, and its uncertainty."""
