"""
InnerQ: the KV cache, quantized along the dimension that a decode step sums over (arXiv 2602.23200).

`config` the settings, `layer` and `cache` what transformers sees, `store` where the packed tokens lie, `method` what
`patch` does with them. The formulas are in `kernels/innerq`.
"""

from ..methods import register
from .cache import InnerQCache
from .config import InnerQConfig
from .method import InnerQMethod

register(InnerQMethod())

__all__ = ["InnerQCache", "InnerQConfig"]
