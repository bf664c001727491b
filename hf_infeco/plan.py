"""What one attention module of a patched model may use, and what it did: `LayerPlan`, which hangs on the module."""

from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import PreTrainedModel

from . import compat
from .kernels.pairs import PairStats
from .prefill import Prefill

PLAN_ATTRIBUTE = "_infeco_plan"


@dataclass
class LayerPlan:
    """
    Attributes:
        prefill (`Prefill`, *optional*): causal attention of a prompt; None runs dense. An object or a function of a
            module, so that a deepcopy or a pickle of the model carries it along.
        stats (`PairStats`): what causal prefills have attended so far. Its numbers may be tensors, so that no prefill
            waits for the device.
        packed_calls, unpacked_calls (`int`): decode steps on a packed cache so far that were attended as they are, and
            that had to be dequantized first.
    """

    prefill: Prefill | None = None
    stats: PairStats = field(default_factory=lambda: PairStats(0, 0))
    packed_calls: int = 0
    unpacked_calls: int = 0

    def count_dense(self, query: torch.Tensor, key: torch.Tensor) -> None:
        """A prefill that no method could take counts as visited whole, so that the reported density tells."""
        self.stats = self.stats + PairStats.dense(query, key)


def plan_of(module: nn.Module | None) -> LayerPlan | None:
    """None where the module is not patched."""
    return getattr(module, PLAN_ATTRIBUTE, None)


def plans_of(model: PreTrainedModel) -> dict[int, LayerPlan]:
    """By layer index; layers that share one module share its plan."""
    modules = compat.attention_modules(compat.decoder_of(model))
    return {index: plan for index, module in modules.items() if (plan := plan_of(module)) is not None}
