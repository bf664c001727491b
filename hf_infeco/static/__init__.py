"""
STATIC: decode only sequences that exist, from catalogues of millions of items (arXiv 2602.22647).

`sequences`, `texts`, `build`, `merge`, `items`, `eligible` and `saving` make an `index`; `processor` constrains
`generate()` with it, `vllm` an engine, and `search` is a beam search over its candidates. The formulas are in
`kernels/static`.
"""

from .index import StaticIndex
from .processor import StaticLogitsProcessor
from .search import ConstrainedBeams, constrained_beam_search, static_generate

__all__ = ["ConstrainedBeams", "StaticIndex", "StaticLogitsProcessor", "constrained_beam_search", "static_generate"]
