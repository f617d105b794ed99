"""DeepSpeed ZeRO 0 to 3: the optimizer step, its state, and checkpoints."""
