"""
What S2O and InnerQ cost a real trained model: `make real`, or `hf-infeco bench real`.

Read in this order: `fetch` (the model, once), `ways` (how prompts are read and what is kept of them: all that is
compared), `reader` (the model at work in one of these ways), then the parts `text` (perplexity and divergence),
`lookup` (passkeys and pairs), `answers`, `layers`, `padding`, `taus`, then `plots`, `report` (tables), and `suite`,
which lists them all.
"""
