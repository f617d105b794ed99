"""CoFiTune's search for where to train: which layers, and which modules in them."""
