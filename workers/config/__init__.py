"""What the workers are given: domains, data, model, training. No torch import."""
