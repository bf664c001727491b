"""Small models trained from nothing, offline, as a yardstick for lossy methods.

The `recall` model reads real English and Python and answers key -> value lookups hidden in up to 16K tokens of it.
Read in this order: `text` (the real text, its held-out part, the tokenizer), `needles` (the task), `rows` (its
training rows), `lookup_heads` (the start that makes lookup learnable in a minute), `train_recall` (curriculum and
command line), `evaluate` (recall with intervals and perplexity, for any causal LM), `card` (the model card).

The `puzzle` model fills in Sudokus, sums and countdowns by masked diffusion: see the folder `puzzle`.

The `catalog` model reads what a user bought and writes the next item's semantic id. In this order: `catalogue` (the
invented shop and its users), `train_catalog`, `evaluate_catalog` (with and without an index), `card_catalog`.
"""
