"""DeepSpeed ZeRO 0 to 3: one step, the state that it keeps, and checkpoints of it."""
