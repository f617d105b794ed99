"""Held-out losses by domain: which examples, what each of them loses, and how sure that is."""
