"""DeepSpeed ZeRO 0 to 3: the optimizer step, its state, and checkpoints.

engine                              a model in training: forward_backward, step, and passes without a gradient
trainable, deepspeed_config, deepspeed_keys    the model and the settings that DeepSpeed is given
learning_rate, weight_decay, gradients, router_loss    parts of a step
checkpoint, zero_state, partitions  masters and moments: on disk, whole, and in the flat tensors of a rank
collectives                         one answer for all ranks
"""
