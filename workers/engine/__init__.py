"""DeepSpeed ZeRO 0 to 3: the optimizer step, its state, and checkpoints.

engine                              a model in training: forward_backward, step, and passes without a gradient
trainable, deepspeed_config, deepspeed_keys    the model and the settings that DeepSpeed is given
optimizer, router_loss              parts of a step: learning rate, decay, gradients; the loss of routers
zero_state, stored_tensors          masters and moments: in the flat tensors of a rank; in the files of all ranks
checkpoint_writer, checkpoint       written in the background; found, verified and loaded
collectives                         one answer for all ranks
"""
