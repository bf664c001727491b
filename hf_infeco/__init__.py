"""
hf_infeco: recent systems for long context and structured decoding, as one patch for Hugging Face transformers.

    model = hf_infeco.patch(model)

Importing the package changes no model. torch and transformers are imported with the first name that needs them. See
`hf_infeco.patch`, `InfecoConfig`, and the folder of each system.
"""

from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

__version__ = version("hf_infeco")

__all__ = [
    "CACHE_NAME",
    "ConstrainedBeams",
    "InfecoConfig",
    "InnerQCache",
    "InnerQConfig",
    "PatchReport",
    "RemixConfig",
    "S2OConfig",
    "SideQuestConfig",
    "SideQuestSession",
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

# Where each name comes from, once for whoever reads types and once for Python, which imports a module when it is asked
# for a name of it. No module may be called like a public name: importing it would put it in the name's place.
if TYPE_CHECKING:
    from .cache_operations import fork_cache, held_mask, join_heads, keep_tokens, select_heads
    from .compat import CACHE_NAME
    from .config import InfecoConfig
    from .innerq import InnerQCache, InnerQConfig
    from .kernels.devices import describe_device
    from .kv import cache_nbytes
    from .patch_report import PatchReport
    from .patching import explain, patch, patched, report, unpatch
    from .remix import RemixConfig
    from .s2o import S2OConfig, s2o_attention
    from .sidequest import SideQuestConfig, SideQuestSession
    from .static import (
        ConstrainedBeams,
        StaticIndex,
        StaticLogitsProcessor,
        constrained_beam_search,
        static_generate,
    )
    from .warming import warm_up
else:
    ORIGINS = {
        "cache_operations": ["fork_cache", "held_mask", "join_heads", "keep_tokens", "select_heads"],
        "compat": ["CACHE_NAME"],
        "config": ["InfecoConfig"],
        "innerq": ["InnerQCache", "InnerQConfig"],
        "kernels.devices": ["describe_device"],
        "kv": ["cache_nbytes"],
        "patch_report": ["PatchReport"],
        "patching": ["explain", "patch", "patched", "report", "unpatch"],
        "remix": ["RemixConfig"],
        "s2o": ["S2OConfig", "s2o_attention"],
        "sidequest": ["SideQuestConfig", "SideQuestSession"],
        "static": [
            "ConstrainedBeams",
            "StaticIndex",
            "StaticLogitsProcessor",
            "constrained_beam_search",
            "static_generate",
        ],
        "warming": ["warm_up"],
    }
    ORIGIN_OF = {name: module for module, names in ORIGINS.items() for name in names}

    def __getattr__(name: str) -> Any:
        if name in ORIGIN_OF:
            found = getattr(import_module(f".{ORIGIN_OF[name]}", __name__), name)
            globals()[name] = found
            return found
        if find_spec(f"{__name__}.{name}") is not None:  # `hf_infeco.static` works without an import of its own
            return import_module(f".{name}", __name__)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
