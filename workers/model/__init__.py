"""The base model: its files, its tokenizer, its weights, and the proof that packed examples stay apart.

base_config, base_folder, model_files, base_name    what its files say and whether they fit together; no weight is read
tokenizer, tokenizer_files                          its tokenizer, or why it does not load
loading, attention                                  its weights and its attention kernel
packed_forward, isolation                           packed rows through the model, and the proof that they stay apart
importance                                          scores of its heads and neurons, for CoFiTune
"""
