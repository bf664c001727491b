"""
STATIC against transformers' own constraint, binary search and unconstrained search: `hf-infeco bench static`.

Read in this order: `catalogues` (random items, and rows on their way through them), then the parts `step` (one call of
the processor), `baselines` (what else there is), `search` (whole beam searches), `build` and `validity`, `report` (the
tables of docs/static.md), and `run`, which writes them all to one file. `gpu` is the step on a GPU, with a file of
results of its own.
"""
