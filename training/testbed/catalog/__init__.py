"""The `catalog` model: reads what a user bought and writes the next item's semantic id.

Read in this order: `catalogue` (the invented shop and its users), `train`, `evaluate` (with and without an index),
`card` (the model card).
"""
