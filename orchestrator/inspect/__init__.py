"""`raymix inspect`: what the model will see, read straight from the data files, without token stores or Ray."""
