"""
S2O against dense attention and against the selection rules of its peers: `hf-infeco bench s2o`.

Read in this order: `inputs` (queries, keys and values to attend), `operator` (S2O as it is measured), `rules` (what
the peers would visit), `restricted` (attention of what a rule visits, at a wanted density), then the parts `speed`,
`fidelity` and `tasks`, `report` and `plots`, and `suite`, which lists them all.
"""
