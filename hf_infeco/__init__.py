"""
hf_infeco: recent systems for long context and structured decoding, as one patch for Hugging Face transformers.

    model = hf_infeco.patch(model)

Importing the package changes no model. See `hf_infeco.patch`, `InfecoConfig`, and the folder of each system.
"""

from importlib.metadata import version

from .cache_operations import fork_cache, held_mask, join_heads, keep_tokens, select_heads
from .compat import CACHE_NAME
from .config import InfecoConfig
from .innerq import InnerQCache, InnerQConfig
from .kernels.devices import describe_device
from .kv import cache_nbytes
from .patching import explain, patch, patched, report, unpatch
from .report import PatchReport
from .s2o import S2OConfig, s2o_attention
from .static import (
    ConstrainedBeams,
    StaticIndex,
    StaticLogitsProcessor,
    constrained_beam_search,
    static_generate,
)
from .warming import warm_up

__version__ = version("hf_infeco")

__all__ = [
    "CACHE_NAME",
    "ConstrainedBeams",
    "InfecoConfig",
    "InnerQCache",
    "InnerQConfig",
    "PatchReport",
    "S2OConfig",
    "StaticIndex",
    "StaticLogitsProcessor",
    "cache_nbytes",
    "constrained_beam_search",
    "describe_device",
    "explain",
    "fork_cache",
    "held_mask",
    "join_heads",
    "keep_tokens",
    "patch",
    "patched",
    "report",
    "s2o_attention",
    "select_heads",
    "static_generate",
    "unpatch",
    "warm_up",
]
