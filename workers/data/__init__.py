"""From rows to batches.

files, contents           the kind of a file by its name, and by its first bytes
locations                 files, folders and patterns -> the files that they name
streams, framing          bytes of any compression and encoding -> UTF-8 -> where rows begin and end
json_rows, csv_rows, parquet_rows, arrow_rows   one layout each -> rows
reading                   any file -> rows; what cannot be read is a BadRow, never a crash
sources                   files or hub sets -> examples, as a stream
formats                   a row of any known layout -> Example (messages, or a plain document)
templates                 Example -> token ids and loss mask
tokenization, report      one shard of a source -> flat token files; bad and too long rows counted
packing                   lengths -> which examples share a row
store                     flat token files -> TokenStore: packed and memory-mapped
preparing                 a domain -> its tasks, and the key of its stores
schedule, batches         token stores and weights -> the rows of a step -> batches
"""
