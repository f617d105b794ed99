"""The base model: its files, its tokenizer, its weights, and the proof that packed examples stay apart."""
