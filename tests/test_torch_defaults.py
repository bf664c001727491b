"""Torch's default dtype and default device belong to the user: whatever they are, everything computes as before."""

from collections.abc import Iterator

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import hf_infeco
from hf_infeco import (
    CACHE_NAME,
    InfecoConfig,
    InnerQConfig,
    S2OConfig,
    StaticIndex,
    StaticLogitsProcessor,
    constrained_beam_search,
)

IDS = torch.randint(3, 97, (2, 200), generator=torch.Generator().manual_seed(0))
HEADS = [torch.randn(1, heads, 1024, 64, generator=torch.Generator().manual_seed(heads)) for heads in (4, 2, 2)]
ITEMS = torch.randint(3, 97, (500, 4), generator=torch.Generator().manual_seed(1)).unique(dim=0)
DEFAULTS = [torch.bfloat16, torch.float16, torch.float64, torch.device("meta")]


@pytest.fixture(params=DEFAULTS, ids=str)
def other_default(request) -> Iterator[torch.dtype | torch.device]:
    """Yields a default that is not set yet; `set_default` of it lasts to the end of the test."""
    yield request.param
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


def set_default(default: torch.dtype | torch.device) -> None:
    if isinstance(default, torch.device):
        torch.set_default_device(default)
    else:
        torch.set_default_dtype(default)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, initializer_range=0.2, pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(torch.bfloat16).eval()


def index() -> StaticIndex:
    return StaticIndex.build(ITEMS, vocab_size=97)


def sparse_attention(model) -> torch.Tensor:
    return hf_infeco.s2o_attention(*HEADS, S2OConfig(crossover=0))


def decoding(model) -> torch.Tensor:
    """Logits of steps on a cache that has packed tokens, padding, and a tile that is packed on the way."""
    mask = torch.ones_like(IDS)
    mask[1, :9] = 0
    settings = InnerQConfig(sink=4, recent=8, value_bits=2, hybrid_values=True)
    with hf_infeco.patched(model, InfecoConfig(s2o=None, innerq=settings)), torch.no_grad():
        out, logits = model(IDS[:, :150], attention_mask=mask[:, :150], use_cache=True), []
        for step in range(150, 200):
            out = model(IDS[:, step, None], attention_mask=mask[:, : step + 1], **{CACHE_NAME: out[CACHE_NAME]})
            logits.append(out.logits)
        return torch.cat([*logits, out[CACHE_NAME].layers[1].keys.flatten(1)[:, None]], -1)


def constrained_scores(model) -> torch.Tensor:
    scores = torch.randn(2, 97, generator=torch.Generator().manual_seed(2), dtype=torch.float32, device="cpu")
    return StaticLogitsProcessor(index(), prompt_length=200)(IDS, scores)


def constrained_search(model) -> torch.Tensor:
    return constrained_beam_search(model, {"input_ids": IDS}, index(), num_beams=5).scores


@pytest.mark.parametrize("compute", [sparse_attention, decoding, constrained_scores, constrained_search])
@pytest.mark.parametrize("backend", ["", "reference"])
def test_another_default_changes_nothing(compute, backend, other_default, model, monkeypatch):
    if backend:
        monkeypatch.setenv("HF_INFECO_BACKEND", backend)
    expected = compute(model)
    set_default(other_default)
    assert torch.equal(compute(model), expected)
