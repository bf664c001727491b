"""Small models, trained offline, as a yardstick for lossy methods.

A package per model, each with `train`, `evaluate` and `card` as command lines and its data beside them: `recall`
finds values in long text, `catalog` recommends items, `puzzle` fills in Sudokus and sums by masked diffusion, `agent`
answers by search, open and find: that one is an adapter of a model that was trained before, the others begin from
nothing. `structured_heads` are heads without a model; `accuracy` and `facts` are what the packages share.
"""
