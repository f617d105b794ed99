"""`raymix init`: a first configuration for somebody's own files, after a look at them.

looking.py    files -> domains: names, training and evaluation files, format, rows, lengths
held_out.py   which fraction of a domain's prompts to set aside
writing.py    domains -> a commented config.yaml
"""
