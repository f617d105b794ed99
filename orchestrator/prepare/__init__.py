"""What has to be ready before a training: token stores, importance, detected shares, enough memory.

data, token_stores    the token stores of every domain; what runs of one command share is prepared once
findings              what became of the rows: counts, and sentences about them
detection/            the shares that a base model already knows
importance            scores that CoFiTune's soft mask needs
memory                the memory of a rank, estimated
"""
