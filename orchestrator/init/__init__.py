"""`raymix init`: a first configuration for somebody's own files, after a look at them.

looking.py    files -> domains: names, training and evaluation files, format, rows, lengths
writing.py    domains -> a commented config.yaml
"""
