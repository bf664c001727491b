"""
Flying Serving: the parallel width of a served model changes while requests run.

Source: arXiv 2602.22593.
"""

from .. import compat

compat.require_flying()

from .manager import FlyingManager  # noqa: E402 - on an older transformers its imports would fail without a sentence
from .switcher import ParallelSwitcher  # noqa: E402

__all__ = ["FlyingManager", "ParallelSwitcher"]
