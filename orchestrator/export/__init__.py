"""A finished run's model as a folder to give away: weights, tokenizer, and a card that says what it was trained on.

card.py      README.md of the model: the mixture it really saw, what it learned and forgot, how to load it
driver.py    which weights: merged as trained, in bfloat16, or a LoRA adapter alone
"""
