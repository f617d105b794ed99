"""`raymix tune`: Ray Tune over a run's mixing hyperparameters, populations whose mix changes on the way, and RegMix."""
