"""`raymix inspect`: what the model will see, read from the files themselves; no store is built and no Ray started.

cli.py        the verbs
reading.py    configuration -> the first examples of each domain, as they are tokenised and cut, refused rows included
showing.py    examples -> the terminal, or a JSON object a line
"""
