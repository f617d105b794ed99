"""DeepSpeed ZeRO 0 to 3: the optimizer step, its state, and checkpoints.

engine                              a model in training: forward_backward, step, and passes without a gradient
trainable, deepspeed_config, deepspeed_keys    the model and the settings that DeepSpeed is given
optimizer, router_loss              parts of a step: learning rate, decay, gradients; the loss of routers
checkpoint, zero_state              masters and moments: on disk; whole, and in the flat tensors of a rank
collectives                         one answer for all ranks
"""
