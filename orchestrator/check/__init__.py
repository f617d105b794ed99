"""`raymix check`: the plan of a run, without training."""
