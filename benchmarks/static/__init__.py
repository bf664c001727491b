"""
STATIC against transformers' own constraint, binary search and unconstrained search: `hf-infeco bench static`.

Read in this order: `catalogues` (random items, and rows on their way through them), then the parts `step` (one call of
the processor), `baselines` (what else there is), `search` (whole beam searches), `build` and `validity`, `plots`,
`report` (the tables), and `suite`, which lists all. `gpu` is the step on a GPU, with a file of results of its own.
"""
