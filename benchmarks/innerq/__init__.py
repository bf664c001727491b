"""
InnerQ against the dense cache, transformers' QuantizedCache and KIVI's grouping: `hf-infeco bench innerq`.

Read in this order: `kivi` (the other grouping, as formula and as a kernel in the style of ours), `caches` (everything
that is compared, as caches of one interface), then the parts `sizes`, `step` (one layer's decode attention, and the
roofline), `decode` (the whole model), `quality` (recall, perplexity, error per layer), `plots`, `report` (the
tables), and `suite`, which lists them all. `gpu` is the same for a GPU, with a file of results of its own.
"""
