"""
S2O: prefill attention that visits the past in order of importance, ranked online, and stops early (arXiv 2602.22575).

Softmax mass is thin: a query needs few keys if the right ones come first. One order of the past serves a segment of
queries; each query leaves it as soon as new keys add no mass.
"""

from .attention import s2o_attention
from .config import S2OConfig

__all__ = ["S2OConfig", "s2o_attention"]
