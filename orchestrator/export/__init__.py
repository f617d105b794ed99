"""`raymix export`: a finished run's model as a folder for sharing, with weights, tokenizer and model card."""
