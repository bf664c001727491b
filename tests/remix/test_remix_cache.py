"""Keys and values of finished blocks: where keeping them is exact, and what is exact where it is not."""

import pytest
import torch

from hf_infeco.remix import RemixConfig, generate
from tests.remix.models import prompts, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")


def answers(model, ids, mask=None, **settings):
    config = RemixConfig(**{**dict(max_new_tokens=24, block_length=8, tau_conf=0.3), **settings})
    return generate(model, ids, config, attention_mask=mask).sequences


@pytest.mark.parametrize("strategy", ["one", "top_k", "confidence", "remix"])
@pytest.mark.parametrize("length", [1, 7, 8, 9, 20])
def test_reuse_is_exact_where_attention_is_block_causal(strategy, length):
    model = tiny_model(block_length=8)
    ids = prompts(3, length)
    assert torch.equal(*(answers(model, ids, strategy=strategy, reuse_cache=reuse) for reuse in (False, True)))


def test_reuse_is_exact_where_padding_puts_the_rows_blocks_apart():
    model = tiny_model(block_length=8)
    ids, mask = prompts(3, 12), torch.ones(3, 12)
    mask[1, :5] = mask[2, :9] = 0
    assert torch.equal(*(answers(model, ids, mask, reuse_cache=reuse) for reuse in (False, True)))


@pytest.mark.parametrize("shifted", [False, True])
def test_reuse_is_exact_in_both_directions_while_each_block_takes_one_forward(shifted):
    """Every block begins with a forward over everything, so its first distributions are those without a cache."""
    model = tiny_model(shifted_logits=shifted)
    how = dict(block_length=4, tau_conf=0.0, strategy="confidence")  # up to five positions are committed at once
    assert torch.equal(*(answers(model, prompts(3, 6), reuse_cache=reuse, **how) for reuse in (False, True)))


def test_reuse_is_an_approximation_in_both_directions_where_a_block_takes_more():
    """Finished tokens keep the keys they had while the block was masked. Were it exact, the docs should say so."""
    model = tiny_model()
    ids = prompts(16, 6)
    assert not torch.equal(*(answers(model, ids, strategy="one", reuse_cache=reuse) for reuse in (False, True)))


def test_shifted_logits_of_a_block_s_first_position_are_not_lost():
    """They stand on the last column of the finished block before."""
    model = tiny_model(block_length=8, shifted_logits=True)
    ids = prompts(3, 9)
    assert torch.equal(*(answers(model, ids, reuse_cache=reuse) for reuse in (False, True)))


def test_forwards_read_no_more_than_what_is_not_in_the_cache():
    model, read = tiny_model(block_length=8), []
    model.model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    answers(model, prompts(2, 8), strategy="one", reuse_cache=True)
    # The prompt and the first block, then blocks; the first forward of a block reads the finished one once more.
    assert read == [16, *[8] * 7, 16, *[8] * 7, 16, *[8] * 7]
