"""
Flying Serving: the parallel width of a served model changes while requests run.

Source: arXiv 2602.22593.
"""

from .switcher import ParallelSwitcher

__all__ = ["ParallelSwitcher"]
