"""S2O as a method of `patch`: which layers it takes, what it hangs on them, and what it reports."""

from functools import partial
from typing import ClassVar

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from .. import compat
from ..attention_source import attention_code
from ..edits import Edits
from ..kernels.dispatch import choose
from ..kernels.pairs import PairStats
from ..methods import Method, Outcome
from ..plan import plans_of
from ..survey import Layer, Survey
from .config import AUTO, S2OConfig
from .crossover import LENGTHS, NEVER, Heads, known
from .operation import SparsePrefill
from .path import choose_path
from .report import S2OReport


class S2OMethod(Method):
    name: ClassVar[str] = "s2o"

    def refuse(self, found: Survey, layer: Layer) -> str | None:
        if found.attention_refusal is not None:
            return found.attention_refusal
        if layer.attention is None:
            return "no self-attention module"
        return layer.window or _other_logits(found.model.config, layer.attention)

    def apply(self, model: PreTrainedModel, settings: S2OConfig, layers: list[int], edits: Edits) -> None:
        plans = plans_of(model)
        for index in layers:
            plans[index].prefill = SparsePrefill(settings)

    def outcome(self, found: Survey, layer: Layer, settings: S2OConfig) -> Outcome:
        """That of a prompt as long as the model takes."""
        heads, longest = _heads(found, layer), found.longest or NEVER - 1
        path, reason = choose_path(settings, heads, longest, longest, partial(known, settings, heads))
        backend = choose("s2o_prefill", found.device).backend
        if path == "dense":
            return Outcome("fallback", f"dense: {reason}", backend)
        return Outcome("enabled", f"sparse prefill {reason}, tau={settings.tau:g}; dense below", backend)

    def measured(self, found: Survey) -> S2OReport:
        """Density by layer; that of layers which share one module stands at the first of them."""
        plans = plans_of(found.model)
        first = {id(plan): index for index, plan in reversed(plans.items())}
        return S2OReport.of(
            {
                index: PairStats(
                    int(plan.stats.visited_pairs),
                    plan.stats.causal_pairs,
                    float(plan.stats.missed_mass),
                    plan.stats.rows,
                )
                for index, plan in plans.items()
                if isinstance(plan.prefill, SparsePrefill) and first[id(plan)] == index
            }
        )

    def warm_up_tokens(self, settings: S2OConfig) -> int:
        return LENGTHS[0] if settings.crossover == AUTO else int(settings.crossover)


def _other_logits(config: PreTrainedConfig, module: nn.Module) -> str | None:
    """Why S2O, which judges keys by the product with the query alone, would judge them wrongly here."""
    if cap := compat.config_value(config, "attn_logit_softcapping"):
        return f"its logits are capped at {cap}, and S2O judges keys by logits that are not"
    if "position_bias" in attention_code(module).arguments:
        return "a position bias is added to its logits, and S2O judges keys by logits without"
    return None


def _heads(found: Survey, layer: Layer) -> Heads:
    config = found.model.config
    kv_heads, key_dim, value_dim = compat.key_value_dims(config, layer.index, layer.attention)
    count = (compat.query_heads(config, layer.index), kv_heads)
    has_sinks = getattr(layer.attention, "sinks", None) is not None
    return Heads(found.device, found.model.dtype, count, (key_dim, value_dim), has_sinks)
