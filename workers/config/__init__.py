"""Settings of the workers: domains, data, model, training. No torch import."""
