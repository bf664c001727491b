"""
ReMix: answers of masked diffusion language models in fewer forwards (arXiv 2602.22868).

`generation` is the public call. `filling` takes the steps: `denoiser` calls the model, `choice` picks tokens, `rules`
which of them are committed, `mixing` what the others show the model, on a `canvas`. `model` is a native model for it,
`loading` reads LLaDA's and Dream's weights into one. The formulas are in `kernels/remix`.
"""

from .config import RemixConfig
from .denoiser import Adapter
from .filling import RemixOutput, RemixStep
from .generation import generate, remix_generate
from .loading import load_diffusion_lm
from .model import MaskedDiffusionConfig, MaskedDiffusionLM

__all__ = [
    "Adapter",
    "MaskedDiffusionConfig",
    "MaskedDiffusionLM",
    "RemixConfig",
    "RemixOutput",
    "RemixStep",
    "generate",
    "load_diffusion_lm",
    "remix_generate",
]
