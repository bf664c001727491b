"""Measurements that anyone can repeat. Each writes numbers, device, versions and commit to `benchmarks/results/`."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .suite import Suite

# Name of the folder: what it measures, for the command line, which imports nothing heavy to list them.
SUITES = {
    "foundation": "The bundled recall model dense and patched: recall, perplexity, bytes, time.",
    "s2o": "S2O against dense attention and its peers' selection rules: time, error, recall and perplexity.",
    "innerq": "InnerQ against the dense cache, QuantizedCache and KIVI: bytes, time, recall and perplexity.",
    "static": "STATIC against transformers' own constraint and unconstrained search: time, memory and validity.",
    "remix": "ReMix against one token per step, several, and the confidence threshold: accuracy over forwards, time.",
    "flying": "Switching the width of a served model: times, texts, a bursty trace under each policy.",
    "servesim": "The serving simulator against public vLLM runs and the paper's H100 summaries: error, speed, memory.",
    "sidequest": "SideQuest on the bundled agent against keeping everything, perfect eviction and baselines.",
    "real": "A real trained model, dense and patched: perplexity, retrieval, answers, other caches at equal bytes.",
}


def load(name: str) -> "Suite":
    """The benchmark of that name in `SUITES`."""
    return import_module(f"{__name__}.{name}.suite").SUITE
