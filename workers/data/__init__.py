"""From rows to batches: sources -> formats -> templates -> packing -> store -> schedule -> batches.

files, sources    files or hub sets -> rows, read as a stream; what cannot be read is a BadRow, never a crash
formats           a row of any known layout -> Example (messages, or a plain document)
templates         Example -> token ids and loss mask
tokenization      one shard of a source -> flat token files, too long and bad rows counted
packing           lengths -> which examples share a row
store             flat token files -> TokenStore: packed, memory-mapped, keyed by content
"""
