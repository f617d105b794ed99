"""One run on every rank: its plan, the loop, and the trainer that the loop calls."""
