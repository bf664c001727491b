"""What the kernels of S2O are tested on: heads with patterns, dense attention, and a tau at which decisions matter."""

import pytest
import torch

from hf_infeco.kernels.pairs import count_causal_pairs
from hf_infeco.kernels.s2o import reference
from hf_infeco.kernels.s2o.granules import cut_into_granules
from hf_infeco.kernels.s2o.settings import S2OSettings
from hf_infeco.training.testbed.structured_heads import structured_heads

ROUNDING = {torch.float32: 2e-5, torch.float16: 1e-3, torch.bfloat16: 4e-3}  # of weights and outputs


def attend(prefill, query, key, value, *, scale=None, tau, **given):
    """`prefill` with those of `given` that are `S2OSettings` as one object, and the others beside it."""
    numbers = {name: given.pop(name) for name in S2OSettings._fields if name in given}
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return prefill(query, key, value, scale=scale, settings=S2OSettings(tau, **numbers), **given)


def make_case(
    length, *, q_len=None, head_dim=64, value_dim=None, ratio=2, kv_heads=1, batch=1, dtype=torch.float32, needles=0
):
    """Heads with patterns to leave out; queries are the last `q_len` positions."""
    shape = dict(num_heads=ratio * kv_heads, num_kv_heads=kv_heads, head_dim=head_dim, needles=needles)
    heads = [structured_heads(length, seed=seed, **shape)[:3] for seed in range(batch)]
    query, key, value = (torch.cat(parts).to(dtype) for parts in zip(*heads))
    return query[:, :, length - (q_len or length) :], key, value[..., :value_dim]


def sharp_case(length, spread, *, dtype=torch.float32, **shape):
    """Gaussian heads whose logits have this standard deviation: nearly all mass lies on few keys, anywhere."""
    rng = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(x.shape, generator=rng) for x in make_case(length, **shape))
    return (query * spread).to(dtype), key.to(dtype), value.to(dtype)


def check_far_past(prefill, segment, granule, compensate, tolerance=1e-5):
    """
    A past whose like keys are equal, so that they promise nothing, and lie exp(640) above the near keys: it enters by
    its means, which is exact, or, without these, only the near keys are left.
    """
    query, key, value = make_case(200)
    query[:], key[..., :segment, :], key[..., segment:, :] = 40, 1, -1
    key[..., : segment // granule, :] = -5  # odd
    settings = S2OSettings(0.01, segment=segment, granule=granule, compensate=compensate)
    out, stats = prefill(query, key, value, scale=query.shape[-1] ** -0.5, settings=settings)
    late = out[..., segment:, :]
    assert late.isfinite().all() and stats.missed_mass == pytest.approx(late[..., 0].numel())
    if compensate:
        assert distance(out, dense(query, key, value)) < tolerance


def crowded_case(segment, granule, **shape):
    """More keys that are like no other than a block has odd keys: some lie in granules, which are scattered then."""
    query, key, value = make_case(300, ratio=4, needles=32, **shape)
    cut = cut_into_granules(key[0], value[0], reference.frame_of(query, key[0]).keys, segment, granule)
    assert cut.scattered.any()
    return query, key, value


def dense(query, key, value, sinks=None):
    """
    The definition, float32: softmax of scaled logits over the keys not after the query, and over each head's sink,
    whose value is zero.
    """
    ratio = query.shape[1] // key.shape[1]
    key, value = (x.float().repeat_interleave(ratio, 1) for x in (key, value))
    logits = query.float() @ key.mT * query.shape[-1] ** -0.5
    future = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(logits.shape[-1] - logits.shape[-2] + 1)
    logits = logits.masked_fill(future, -torch.inf)
    if sinks is not None:
        column = sinks.float()[None, :, None, None].expand(*logits.shape[:3], 1)
        logits, value = torch.cat([logits, column], -1), torch.nn.functional.pad(value, (0, 0, 0, 1))
    return logits.softmax(-1) @ value


def distance(out, expected):
    return float((out - expected).norm() / expected.norm())


def half_visited(query, key, value, **settings):
    """The reference at a tau at which it visits about half of what it may choose from: wrong decisions show there."""

    def at(tau):
        return attend(reference.s2o_prefill, query, key, value, tau=tau, **settings)

    near, low, high = at(1e9)[1].visited_pairs, 1e-8, 1e2
    for _ in range(12):
        tau = (low * high) ** 0.5
        out, stats = at(tau)
        share = (stats.visited_pairs - near) / (stats.causal_pairs - near)
        if 0.4 < share < 0.6:
            break
        low, high = (tau, high) if share > 0.5 else (low, tau)
    assert 0.05 < share < 0.95, "no tau tells right decisions from wrong ones in this case"
    return tau, out.float(), stats


def check_exact(run, query, key, value, tolerance=None, **settings):
    """At tau = 0 all is visited by `run(query, key, value, tau, ...)`."""
    tolerance = tolerance or (1e-5 if query.dtype == torch.float32 else 2 * ROUNDING[query.dtype])
    out, stats = run(query, key, value, 0.0, **settings)
    torch.testing.assert_close(out, dense(query, key, value, settings.get("sinks")), rtol=tolerance, atol=tolerance)
    pairs = query.shape[0] * query.shape[1] * count_causal_pairs(query.shape[2], key.shape[2])
    assert stats.visited_pairs == stats.causal_pairs == pairs
    assert stats.missed_mass == 0


def check_like_reference(run, tiles, query, key, value, tau=None, **settings):
    """
    In float32 `run` is far nearer to the reference than that is to dense attention; in any dtype it decides the same.
    At `tau`, or where about half is visited; `tiles` says which rows decide together.
    """
    if tau is None:
        tau, expected, wanted = half_visited(query, key, value, **tiles, **settings)
    else:
        expected, wanted = attend(reference.s2o_prefill, query, key, value, tau=tau, **tiles, **settings)
    left_out = distance(expected, dense(query, key, value, settings.get("sinks")))
    out, stats = run(query, key, value, tau, **settings)
    is_exact = query.dtype == torch.float32
    rounding = ROUNDING[query.dtype]
    assert distance(out, expected) < (min(rounding, max(left_out / 3, 2e-6)) if is_exact else rounding)
    # A granule may lie so near the threshold that the order of sums decides.
    pairs = {"rel": 1e-4, "abs": settings["granule"] - 1} if is_exact else {"rel": 2e-2}
    assert stats.visited_pairs == pytest.approx(wanted.visited_pairs, **pairs)
    assert stats.missed_mass == pytest.approx(wanted.missed_mass, rel=1e-3 if is_exact else 5e-2)
    assert (stats.causal_pairs, stats.rows) == (wanted.causal_pairs, wanted.rows)
