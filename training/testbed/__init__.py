"""Small models trained from nothing, offline, as a yardstick for lossy methods.

A package per model, each with `train`, `evaluate` and `card` as command lines and its data beside them: `recall`
finds values in long text, `catalog` recommends items, `puzzle` fills in
Sudokus and sums by masked diffusion. `structured_heads` are heads without a model.
"""
