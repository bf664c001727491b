"""The `recall` model: reads real English and Python and answers key -> value lookups hidden in up to 16K tokens of it.

Read in this order: `text` (the real text, its held-out part, the tokenizer), `needles` (the task), `rows` (its
training rows), `lookup_heads` (the start that makes lookup learnable in a minute), `train` (curriculum and command
line), `evaluate` (recall with intervals and perplexity, for any causal LM), `card` (the model card).
"""
