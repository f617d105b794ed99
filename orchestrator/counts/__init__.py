"""What became of the rows: counted by domain and reason, and said in sentences.

records.py     the counts and the findings, as `check --json` prints them and a run keeps them in data.json
counting.py    token stores -> counts, those across domains included
findings.py    counts -> sentences
"""
