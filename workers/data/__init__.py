"""From rows to batches.

framing, files, sources   files or hub sets -> rows, as a stream; what cannot be read is a BadRow, never a crash
formats                   a row of any known layout -> Example (messages, or a plain document)
templates                 Example -> token ids and loss mask
tokenization, report      one shard of a source -> flat token files; bad and too long rows counted
packing                   lengths -> which examples share a row
store                     flat token files -> TokenStore: packed and memory-mapped
preparing                 a domain -> its tasks, and the key of its stores
schedule, batches         token stores and weights -> the rows of a step -> batches
"""
