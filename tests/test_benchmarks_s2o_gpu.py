"""The benchmark of S2O on a GPU: what it measures errors against, and that it fills its table."""

import math

import pytest
import torch
import torch.nn.functional as F

from hf_infeco.benchmarks.s2o import gpu
from hf_infeco.benchmarks.s2o.inputs import generated

pytestmark = pytest.mark.usefixtures("one_thread")


def test_sampled_rows_are_those_of_dense_attention():
    heads = generated(300, 64, seed=0)
    rows = torch.tensor([0, 5, 150, 299])
    whole = F.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(gpu.dense_rows(heads, rows), whole[:, :, rows])
    assert gpu.relative_error(1.1 * whole, whole) == pytest.approx(0.1, rel=1e-3)


def test_heads_are_those_of_a_large_model():
    query, key, value = gpu.large_heads(128)
    assert query.shape == (1, 32, 128, 128) and key.shape == value.shape == (1, 8, 128, 128)


def test_the_table_is_filled(monkeypatch):
    """In the interpreter on small float16 heads, with dense attention by whatever kernel there is."""
    triton = pytest.importorskip("triton", reason="triton is not installed")
    if not triton.knobs.runtime.interpret:
        pytest.skip("needs TRITON_INTERPRET=1")
    heads = generated(256, 64, seed=0)
    monkeypatch.setattr(gpu, "large_heads", lambda _: heads)
    monkeypatch.setattr(gpu, "REPEATS", 1)
    monkeypatch.setattr(gpu, "TAUS", (0.003,))
    monkeypatch.setattr(gpu, "SEGMENT", 64)
    monkeypatch.setattr(torch, "bfloat16", torch.float16)  # the interpreter has no bfloat16 products
    monkeypatch.setattr(
        gpu, "dense_by", lambda _, heads: F.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)
    )
    entries = gpu.measure((256,), torch.device("cpu"))
    assert [(entry["tau"], entry["tile"]) for entry in entries] == [(0.003, 64), (0.003, 128)]
    for entry in entries:
        assert 0 < entry["density"] < 1 and 0 < entry["missed"] < 1 and 2e-3 < entry["error"] < 0.5
        assert all(error < 2e-3 for error in entry["dense_error"].values())
        assert all(entry[f"{name}_ms"] > 0 for name in ("s2o", "cut", "order", "flash", "cudnn"))
        assert math.isclose(entry["speedup"], min(entry["flash_ms"], entry["cudnn_ms"]) / entry["s2o_ms"])


def test_the_prefill_of_a_whole_model_is_timed_dense_and_sparse():
    shape = dict(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    (entry,) = gpu.measure_prefill((1100,), torch.device("cpu"), shape)
    assert 0 < entry["density"] < 1
    assert entry["speedup"] == pytest.approx(entry["dense"] / entry["s2o"])
