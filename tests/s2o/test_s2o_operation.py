"""Sparse prefill as an operation of torch, and the length from which on it is used."""

import json

import pytest
import torch
import torch.nn.functional as F

from hf_infeco import S2OConfig, s2o_attention
from hf_infeco.kernels.s2o.reference import count_causal_pairs
from hf_infeco.s2o import crossover, operation
from hf_infeco.s2o.attention import causal_attention

pytestmark = pytest.mark.usefixtures("one_thread")

SPARSE = S2OConfig(tau=0.05, segment=64, granule=16, crossover=0)


def random_heads(length, heads=4, kv_heads=2, dtype=torch.float32):
    rng = torch.Generator().manual_seed(0)
    shapes = [(1, heads, length, 64), (1, kv_heads, length, 64), (1, kv_heads, length, 64)]
    return [torch.randn(shape, generator=rng).to(dtype) for shape in shapes]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Nothing is known yet, and what is measured goes here."""
    monkeypatch.setenv(crossover.VARIABLE, str(tmp_path))
    monkeypatch.setattr(crossover, "_known", {})
    return tmp_path


def pretend(monkeypatch, sparse_per_key, dense_per_pair):
    """Times as if sparse prefill were linear in the keys, and dense quadratic."""

    def seconds(run, query):
        length = run.args[0].shape[2]
        return length**2 * dense_per_pair if run.func is crossover.dense_attention else length * sparse_per_key

    monkeypatch.setattr(crossover, "_seconds", seconds)


def test_torch_compile_sees_one_operation():
    query, key, value = random_heads(200)

    def attend(query):
        return s2o_attention(query * 2, key, value, SPARSE) + 1

    torch.testing.assert_close(torch.compile(attend, backend="aot_eager", fullgraph=True)(query), attend(query))


def test_the_operation_is_what_it_tells_torch():
    arguments = (*random_heads(200), torch.zeros(4), 0.125, 0.05, None, 64, 16, True, 0)
    torch.library.opcheck(operation._operation, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("keys, is_dense", [(199, True), (200, False)])
def test_a_numbers_crossover_counts_keys(keys, is_dense):
    config = S2OConfig(tau=0.5, segment=64, granule=16, crossover=200)
    _, stats = causal_attention(*random_heads(keys), config)
    assert bool(stats.density == 1) is is_dense


def test_the_measured_crossover_is_where_sparse_gets_faster(folder, monkeypatch):
    pretend(monkeypatch, sparse_per_key=3000, dense_per_pair=1)
    heads = random_heads(2048, heads=1, kv_heads=1)
    settings = {"tau": 0.1, "target_mass": None, "segment": 64, "granule": 16, "compensate": True}
    assert crossover.measured_crossover(*heads, settings) == 4096
    assert list(json.loads((folder / "crossover.json").read_text()).values()) == [4096]


def test_a_measured_crossover_is_kept_for_the_next_process(folder, monkeypatch):
    pretend(monkeypatch, sparse_per_key=1, dense_per_pair=1)
    heads = random_heads(1024, heads=1, kv_heads=1)
    settings = {"tau": 0.1, "target_mass": None, "segment": 64, "granule": 16, "compensate": True}
    assert crossover.measured_crossover(*heads, settings) == 1024
    monkeypatch.setattr(crossover, "_known", {})
    monkeypatch.setattr(crossover, "_measure", None)  # would fail if called
    assert crossover.measured_crossover(*heads, settings) == 1024
    with pytest.raises(TypeError):  # heads of another shape are another question
        crossover.measured_crossover(*random_heads(1024, heads=2, kv_heads=1), settings)


def test_a_cut_off_file_is_measured_anew(folder, monkeypatch):
    (folder / "crossover.json").write_text('{"cpu')
    pretend(monkeypatch, sparse_per_key=1, dense_per_pair=1)
    settings = {"tau": 0.1, "target_mass": None, "segment": 64, "granule": 16, "compensate": True}
    assert crossover.measured_crossover(*random_heads(1024, heads=1, kv_heads=1), settings) == 1024
    assert json.loads((folder / "crossover.json").read_text())


def test_short_prompts_are_not_measured(folder, monkeypatch):
    monkeypatch.setattr(crossover, "_measure", None)
    heads = random_heads(1000)
    out, stats = causal_attention(*heads, S2OConfig(segment=64, granule=16))
    assert torch.equal(out, F.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True))
    assert stats.visited_pairs == stats.causal_pairs == 4 * count_causal_pairs(1000, 1000)


def test_without_a_fast_kernel_prefill_stays_dense(folder, monkeypatch):
    monkeypatch.setenv("HF_INFECO_BACKEND", "reference")
    _, stats = causal_attention(*random_heads(1100), S2OConfig(segment=64, granule=16))
    assert stats.density == 1


@pytest.mark.parametrize("which, name", [(0, "q"), (1, "k"), (2, "v")])
def test_nan_is_refused_with_its_place(which, name):
    heads = random_heads(200)
    heads[which][0, 1, 77, 3] = torch.nan
    with pytest.raises(ValueError, match=rf"{name} is NaN in batch row 0 at position 77"):
        s2o_attention(*heads, SPARSE)


def test_nan_in_padding_is_nobodys_business():
    heads = random_heads(200)
    for tensor in heads:
        tensor[0, :, :50] = torch.nan
    assert s2o_attention(*heads, SPARSE, starts=[50]).isfinite().all()
