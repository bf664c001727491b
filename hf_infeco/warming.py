"""`warm_up`: what a patched model would else do at its first long prompt, ahead of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from . import compat
from .methods import registered
from .patching import STATE_ATTRIBUTE, _unwrap
from .plan import plans_of

PROMPT_TOKENS = 2048  # at least
NEW_TOKENS = 8


@torch.no_grad()
def warm_up(model: nn.Module, input_ids: torch.Tensor | None = None) -> None:
    """
    Compiles the kernels of a patched model, and measures from how many tokens on its prefill is to be sparse, by
    answering one prompt. The first call on a machine takes some seconds to minutes; what it finds is kept on disk.

    Args:
        model (`PreTrainedModel` or `PeftModel`): a patched model, on the device and in the dtype that it will run in.
        input_ids (`torch.Tensor` `[1, N]`, *optional*): a prompt like those to come, of 2,048 tokens or more: sparse
            prefill is measured on its attention. Random tokens when None, to which a model attends more diffusely, so
            that sparse prefill may start later than it could.

    Raises:
        ValueError: if the model is not patched.
    """
    inner = _unwrap(model)
    state = vars(inner).get(STATE_ATTRIBUTE)
    if state is None:
        raise ValueError(
            f"This {type(inner).__name__} is not patched, so there is nothing to warm up: call hf_infeco.patch(model) "
            "first."
        )
    if input_ids is None:
        asked = [(method, getattr(state.config, method.name, None)) for method in registered()]
        lengths = [method.warm_up_tokens(settings) for method, settings in asked if settings is not None]
        input_ids = _random_tokens(inner, max(PROMPT_TOKENS, *lengths))
    input_ids = input_ids.to(inner.device)
    settings = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False, "num_beams": 1}
    with _left_as_it_was(inner):
        inner.generate(input_ids, attention_mask=torch.ones_like(input_ids), **settings)


def _random_tokens(model: Any, count: int) -> torch.Tensor:
    """`[1, N]` ordinary tokens, as many as `count` unless the model has room for fewer."""
    text = compat.text_config(model.config)
    room = getattr(text, "max_position_embeddings", None) or count + NEW_TOKENS
    special = set()  # such as that of an image, in whose place a model would look for one
    for config in (model.config, text):
        for name, token in config.to_dict().items():
            if name.endswith(("_token_id", "_token_index")):
                special |= set(token if isinstance(token, list) else [token])
    ordinary = torch.tensor(
        [token for token in range(text.vocab_size) if token not in special], dtype=torch.int64, device="cpu"
    )
    rng = torch.Generator("cpu").manual_seed(0)
    count = max(1, min(count, room - NEW_TOKENS))
    chosen = torch.randint(len(ordinary), (1, count), generator=rng, device="cpu")
    return ordinary[chosen]


@contextmanager
def _left_as_it_was(model: Any) -> Iterator[None]:
    """In eval mode meanwhile; what the report counts does not count this."""
    plans = list(plans_of(model).values())
    counted = [dict(vars(plan)) for plan in plans]
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for plan, before in zip(plans, counted, strict=True):
            vars(plan).update(before)
