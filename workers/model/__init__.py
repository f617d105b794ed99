"""The base model: its files, its tokenizer, its weights, and the proof that packed examples stay apart.

base_config, base_folder, model_files    what its files say and whether they fit together; no weight is read
tokenizer                                its tokenizer, or why it does not load
loading                                  its weights
attention, liger, kernel_choice          kernels that it could use, and the proof that they are right
packed_forward, isolation                packed rows through the model, and the proof that they stay apart
chunked_loss, tail                       losses of so many tokens that their logits would not fit into memory
importance                               scores of its heads and neurons, for CoFiTune
"""
