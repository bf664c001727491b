"""S2O's compiled cut makes the granules that torch's operations make."""

import pytest
import torch

from hf_infeco.kernels.s2o import cpu_cut, granules
from hf_infeco.kernels.s2o.reference import frame_of

from .s2o_cases import make_case

pytestmark = pytest.mark.usefixtures("one_thread")

CASES = [
    (dict(length=600, kv_heads=2), 512, 32),
    (dict(length=2048, head_dim=128, needles=64), 512, 32),  # crowded: some granules are scattered
    (dict(length=300, kv_heads=3, head_dim=80, value_dim=48, dtype=torch.bfloat16), 64, 16),
    (dict(length=200, head_dim=20), 32, 16),  # fewer dimensions than directions
    (dict(length=100), 32, 32),  # nothing to halve
    (dict(length=30), 32, 16),  # no whole block
]


def both_cuts(case, block, size):
    query, key, value = make_case(**case)
    frame = frame_of(query[0].unflatten(0, (key.shape[1], -1)), key[0]).keys
    return [module.cut_into_granules(key[0], value[0], frame, block, size) for module in (granules, cpu_cut)]


@pytest.mark.parametrize("case, block, size", CASES, ids=str)
def test_blocks_are_cut_alike(case, block, size):
    """A key at a median may fall on its other side, where rounding differs; with it, two granules differ."""
    wanted, cut = both_cuts(case, block, size)
    assert [part.shape for part in cut] == [part.shape for part in wanted]
    assert [part.dtype for part in cut] == [part.dtype for part in wanted]
    torch.testing.assert_close(cut.odd.sort(1).values, wanted.odd.sort(1).values)
    alike = (cut.order.sort(2).values == wanted.order.sort(2).values).all(2)
    assert alike.float().mean() > 0.9 or alike.numel() == 0
    for name in ("mean", "variance", "value"):
        ours, theirs = getattr(cut, name)[alike], getattr(wanted, name)[alike]
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert torch.equal(cut.scattered, wanted.scattered)
    assert cut.scattered.any() or not case.get("needles")


def test_keys_that_are_all_alike_are_cut_too():
    keys = torch.ones(1, 128, 64)
    cut = cpu_cut.cut_into_granules(keys, keys, torch.eye(64)[None], 64, 16)
    assert torch.equal(torch.cat([cut.order.flatten(), cut.odd.flatten()]).sort().values, torch.arange(128))
    assert not cut.variance.any() and torch.equal(cut.mean, torch.ones(1, 8, 64)) and not cut.scattered.any()


def test_a_nan_stays_in_its_block():
    keys = torch.randn(1, 128, 64, generator=torch.Generator().manual_seed(0))
    keys[0, 70] = torch.nan
    cut = cpu_cut.cut_into_granules(keys, keys, torch.eye(64)[None], 64, 16)
    assert torch.equal(torch.cat([cut.order.flatten(), cut.odd.flatten()]).sort().values, torch.arange(128))
    assert cut.mean[0, :4].isfinite().all()
