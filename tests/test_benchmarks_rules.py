"""The peers' selection rules, and attention restricted to what they visit."""

import pytest
import torch
import torch.nn.functional as F

from hf_infeco.benchmarks.s2o import rules
from hf_infeco.benchmarks.s2o.inputs import Heads, generated
from hf_infeco.benchmarks.s2o.restricted import attend, causal_share, follow, knob_at
from hf_infeco.benchmarks.s2o.rules import BLOCK, LAST, RULES, SEGMENT

LENGTH = 1024
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


@pytest.fixture(scope="module")
def heads() -> Heads:
    return generated(LENGTH, 64, seed=0)


def one_head(heads: Heads):
    return heads.query[0, 0], heads.key[0, 0], heads.value[0, 0]


def row_by_row(visited: torch.Tensor) -> torch.Tensor:
    """The pairs that a rule visits, `[N, N]`, nothing of the future."""
    return visited.repeat_interleave(visited.shape[1] // len(visited), 0).tril()


@every_rule
def test_all_of_the_knob_is_dense_attention(rule, heads):
    out, density = follow(rule, heads, 1.0)
    dense = F.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(out, dense, rtol=1e-4, atol=1e-4)
    assert density == 1


@every_rule
def test_the_density_rises_with_the_knob(rule, heads):
    densities = [causal_share(rule(*one_head(heads)[:2], share)) for share in (0, 0.02, 0.1, 0.3, 0.6, 0.9, 0.99, 1)]
    assert densities == sorted(densities)
    assert densities[0] < 0.55


@every_rule
def test_a_larger_knob_drops_no_pair(rule, heads):
    query, key, _ = one_head(heads)
    assert not (rule(query, key, 0.1) & ~rule(query, key, 0.5)).any()


@every_rule
def test_every_row_sees_itself_and_the_first_key(rule, heads):
    pairs = row_by_row(rule(*one_head(heads)[:2], 0.0))
    assert pairs.diagonal().all() and pairs[:, 0].all()


@every_rule
def test_the_future_is_never_attended(rule, heads):
    query, key, value = one_head(heads)
    visited = rule(query, key, 0.3)
    now = LENGTH // 2 + 77
    later = torch.arange(LENGTH) >= now
    changed = attend(query, key + 5 * later[:, None], value + 1000 * later[:, None], visited)
    assert torch.equal(changed[:now], attend(query, key, value, visited)[:now])


@every_rule
def test_restricted_attention_is_that_of_the_mask(rule, heads):
    query, key, value = one_head(heads)
    visited = rule(query, key, 0.2)
    masked = F.scaled_dot_product_attention(query, key, value, attn_mask=row_by_row(visited))
    torch.testing.assert_close(attend(query, key, value, visited), masked, rtol=1e-4, atol=1e-5)
    assert causal_share(visited) == row_by_row(visited).sum().item() / (LENGTH * (LENGTH + 1) / 2)


def wanted_keys(positions: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """A query and a key `[N, D]` of small noise, in which every query wants the keys at `positions`."""
    query, key = 0.01 * torch.randn(2, LENGTH, 64, generator=torch.Generator().manual_seed(1))
    query[:, 0] += 10
    key[positions, 0] += 10
    return query, key


def test_block_top_k_takes_the_block_with_the_best_mean():
    query, key = wanted_keys(list(range(3 * BLOCK, 4 * BLOCK)))
    last = rules.block_top_k(query, key, 0.1)[-1].view(-1, BLOCK)
    assert last.all(1).nonzero().flatten().tolist() == [0, 3, LENGTH // BLOCK - 1]


def test_pbs_gathers_the_wanted_keys_of_a_segment_in_one_block():
    """As many as fit a block, one in each two keys: the blocks of the sequence itself would all be needed."""
    scattered = list(range(SEGMENT, 2 * SEGMENT, 2))
    query, key = wanted_keys(scattered)
    last = rules.permuted_blocks(query, key, 0.9)[-1].view(-1, SEGMENT)
    assert last[1].nonzero().flatten().tolist() == [position - SEGMENT for position in scattered]
    assert not last[2].any() and last[3].all()


def test_pbs_always_visits_the_first_token_wherever_it_was_sorted_to():
    query, key = wanted_keys([300])
    key[0, 0] -= 10
    assert rules.permuted_blocks(query, key, 0.5)[:, 0].all()


def test_vertical_slash_follows_a_column_and_a_diagonal():
    query, key = wanted_keys([200])
    distance = 450
    toward = torch.nn.functional.normalize(torch.randn(LENGTH, 64, generator=torch.Generator().manual_seed(2)), dim=1)
    key += 10 * toward
    query[distance:] += 10 * toward[:-distance]
    pairs = row_by_row(rules.vertical_slash(query, key, 0.04))
    assert pairs[200:, 200].all()
    assert pairs.diagonal(-distance).all()
    assert pairs.float().mean() < 0.3  # of 0.5


def test_antidiagonals_see_one_wanted_key_in_a_block():
    query, key = wanted_keys([5 * BLOCK + 3])
    chosen = rules.antidiagonal(query, key, 0.3)[-1].view(-1, BLOCK).all(1)
    assert chosen.nonzero().flatten().tolist() == [0, 5, LENGTH // BLOCK - 1]


def test_the_sliding_window_is_the_share_of_the_sequence_before_the_block():
    begin = LENGTH - BLOCK
    last = rules.sliding_window(*wanted_keys([]), 0.25)[-1]
    assert last[:BLOCK].all() and last[begin - LENGTH // 4 :].all()
    assert not last[BLOCK : begin - LENGTH // 4].any()


@every_rule
def test_the_knob_found_gives_the_density_asked_for_and_hardly_more(rule, heads):
    _, density = follow(rule, heads, knob_at(rule, heads, 0.7))
    assert 0.7 <= density < 0.8


def test_a_ragged_length_is_refused(heads):
    with pytest.raises(ValueError, match=f"1000 keys are no multiple of {BLOCK}"):
        knob_at(rules.sliding_window, Heads(*(x[:, :, :1000] for x in heads)), 0.5)


def test_blocks_of_vertical_slash_divide_those_of_the_others():
    """`knob_at` checks the length against `BLOCK` alone."""
    assert BLOCK % LAST == 0 and SEGMENT % BLOCK == 0
