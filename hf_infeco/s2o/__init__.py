"""
S2O: prefill attention that permutes the past online into granules of like keys, and visits few (arXiv 2602.22575).

Softmax mass is thin: a query needs few keys exactly. It judges each granule by itself, attends those that promise to
matter, and lets the means of all others stand in for them.
"""

from ..methods import register
from .attention import s2o_attention
from .config import S2OConfig
from .method import S2OMethod

register(S2OMethod())

__all__ = ["S2OConfig", "s2o_attention"]
