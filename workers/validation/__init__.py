"""Held-out losses by domain: which examples, the loss of each, and its uncertainty.

loss_meter         what the loop calls: measure over all ranks, describe, record
held_out           the sample of examples
example_losses     the same on disk
domain_losses      the mean and the worst of the domains
loss_statistics    standard errors, of losses and of paired differences
best               which evaluation was the best so far
"""
