"""From rows to batches.

files, contents           the type of a file by its name and by its first bytes
locations                 files, folders and patterns -> files
framing                   bytes -> boundaries of rows
text_rows, arrow_rows     JSON and CSV -> rows; Arrow and Parquet -> rows
reading                   any file, compressed or not -> rows; whatever cannot be read is a BadRow, never a crash
sources                   files or hub data sets -> a stream of examples
formats                   a row of any known layout -> Example (messages, or a plain document)
templates                 Example -> token ids and loss mask
tokenization, report      one shard of a source -> flat token files; bad and too long rows counted
packing                   lengths -> which examples share a sequence
runs, placement           examples in the order of their sequences, on disk: memory does not grow with their number
store                     flat token files -> TokenStore: packed and memory-mapped
preparing                 a domain -> its tasks and the key of its stores
schedule, batches         token stores and weights -> the sequences of a step -> batches
"""
