"""Sparse prefill as an operation of torch, and the length from which on it is used."""

import datetime
import json
import logging
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from hf_infeco import S2OConfig, s2o_attention
from hf_infeco.kernels.devices import processor
from hf_infeco.kernels.pairs import count_causal_pairs
from hf_infeco.prefill import causal_attention
from hf_infeco.s2o import crossover, operation
from hf_infeco.s2o.operation import SparsePrefill
from hf_infeco.s2o.path import choose_path

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


def pretend(monkeypatch, sparse, dense=(0, 1)):
    """Times as if sparse prefill, and dense, took a n + b n^2 for n keys, by `(a, b)` each."""

    def seconds(run, device):
        length = run.args[0].shape[2]
        once, per_pair = dense if run.func is crossover.dense_attention else sparse
        return once * length + per_pair * length**2

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
    _, stats = causal_attention(*random_heads(keys), SparsePrefill(config))
    assert bool(stats.density == 1) is is_dense


AUTO = S2OConfig(tau=0.1, segment=64, granule=16)


def measured(length=1024, heads=1, kv_heads=1, dtype=torch.float32):
    return crossover.measured_crossover(*random_heads(length, heads, kv_heads, dtype), None, AUTO).keys


@pytest.mark.parametrize(
    "sparse, keys",
    [
        ((3000, 0), 3334),  # between the measured lengths: 3000 n = 0.9 n^2
        ((0, 0.5), crossover.SHORTEST),
        ((27_000, 0), 30_000),  # beyond all of them
        ((4000, 0.5), 10_000),
        ((0, 1), crossover.NEVER),
    ],
)
def test_the_crossover_is_where_sparse_gets_faster(folder, monkeypatch, sparse, keys):
    pretend(monkeypatch, sparse)
    assert measured() == pytest.approx(keys, abs=1)


def test_times_are_fitted_by_what_a_key_and_what_a_pair_costs():
    lengths = [2048, 4096, 8192]
    assert crossover.fit(lengths, [3 * n + 0.5 * n**2 for n in lengths]) == pytest.approx((3, 0.5), rel=1e-6)
    assert crossover.fit(lengths, [n**3 for n in lengths])[0] == 0  # steeper than pairs: no negative costs
    assert crossover.fit(lengths, [n**0.5 for n in lengths])[1] == 0


def test_a_measured_crossover_is_kept_for_the_next_process(folder, monkeypatch):
    pretend(monkeypatch, sparse=(3000, 0))
    assert measured() == 3334
    monkeypatch.setattr(crossover, "_known", {})
    monkeypatch.setattr(crossover, "_measure", None)  # would fail if called
    assert measured() == 3334
    with pytest.raises(TypeError):  # heads of another shape are another question
        measured(heads=2)
    with pytest.raises(TypeError):  # and so is another dtype
        measured(dtype=torch.bfloat16)
    with pytest.raises(TypeError):  # or sinks
        crossover.measured_crossover(*random_heads(1024, 1, 1), torch.zeros(1), AUTO)


def test_what_is_on_file_tells_when_where_and_what(folder, monkeypatch):
    pretend(monkeypatch, sparse=(3000, 0))
    measured()
    [(name, entry)] = json.loads((folder / "crossover.json").read_text()).items()
    assert name.startswith(f"CPU {processor()}, {torch.get_num_threads()} threads")
    assert entry["date"] == datetime.date.today().isoformat() and entry["lengths"] == list(crossover.LENGTHS)
    assert entry["dense"] == [n**2 for n in crossover.LENGTHS] and entry["sparse"] == [
        3000 * n for n in crossover.LENGTHS
    ]


@pytest.mark.parametrize("text", ['{"cpu', '{"NAME": 1024}', "[]", '{"NAME": {"date": "2026-01-01", "keys": 3}}', "1"])
def test_a_file_that_is_cut_off_or_of_an_older_format_is_measured_anew(folder, monkeypatch, text):
    pretend(monkeypatch, sparse=(3000, 0))
    measured()
    [name] = json.loads((folder / "crossover.json").read_text())
    (folder / "crossover.json").write_text(text.replace('"NAME"', json.dumps(name)))
    monkeypatch.setattr(crossover, "_known", {})
    pretend(monkeypatch, sparse=(0, 0.5))
    assert measured() == crossover.SHORTEST
    assert name in json.loads((folder / "crossover.json").read_text())


def test_a_measurement_expires(folder, monkeypatch):
    pretend(monkeypatch, sparse=(0, 1))
    assert measured() == crossover.NEVER
    [(name, entry)] = json.loads((folder / "crossover.json").read_text()).items()
    entry["date"] = (datetime.date.today() - crossover.EXPIRY).isoformat()
    (folder / "crossover.json").write_text(json.dumps({name: entry}))
    monkeypatch.setattr(crossover, "_known", {})
    pretend(monkeypatch, sparse=(3000, 0))
    assert measured() == 3334


def test_a_report_may_ask_what_was_measured(folder, monkeypatch):
    heads = crossover.Heads(torch.device("cpu"), torch.float32, (1, 1), (64, 64))
    assert crossover.known(AUTO, heads) is None
    pretend(monkeypatch, sparse=(26_999, 0))
    measured()
    found = crossover.known(AUTO, heads)
    assert found.keys == 29_999
    assert found.summary().startswith("measured slower than dense below 29,999 keys (0.08x at 2,048, 0.15x at 4,096,")
    pretend(monkeypatch, sparse=(0, 1))
    measured(heads=2)
    found = crossover.known(AUTO, replace(heads, count=(2, 1)))
    assert "slower than dense at any length (1.00x at" in found.summary()


def test_it_is_measured_on_the_heads_at_hand(folder, monkeypatch):
    """Noise has nothing to leave out, and its crossover would be nobody's."""
    query, key, value = random_heads(3000, 1, 1)
    seen = []
    monkeypatch.setattr(crossover, "_seconds", lambda run, device: seen.append(run.args) or 1.0)
    crossover.measured_crossover(query, key, value, None, AUTO)
    assert torch.equal(seen[0][1], key[:, :, -2048:])
    assert torch.equal(seen[-1][1][:, :, -3000:], key) and seen[-1][1].shape[2] == 8192


def test_measuring_is_said_before_it_starts(folder, monkeypatch, caplog):
    pretend(monkeypatch, sparse=(3000, 0))
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    measured(), measured()
    [record] = [record for record in caplog.records if "measures from how many keys" in record.getMessage()]
    assert "hf_infeco.warm_up(model)" in record.getMessage() and processor() in record.getMessage()


def test_short_prompts_are_not_measured(folder, monkeypatch):
    monkeypatch.setattr(crossover, "_measure", None)
    heads = random_heads(1000)
    out, stats = causal_attention(*heads, SparsePrefill(S2OConfig(segment=64, granule=16)))
    assert torch.equal(out, F.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True))
    assert stats.visited_pairs == stats.causal_pairs == 4 * count_causal_pairs(1000, 1000)


def test_without_a_fast_kernel_prefill_stays_dense(folder, monkeypatch):
    monkeypatch.setenv("HF_INFECO_BACKEND", "reference")
    _, stats = causal_attention(*random_heads(1100), SparsePrefill(S2OConfig(segment=64, granule=16)))
    assert stats.density == 1


CPU = crossover.Heads(torch.device("cpu"), torch.bfloat16, (4, 2), (64, 64))
CUDA = replace(CPU, device=torch.device("cuda"))
SLOW = crossover.Crossover("2026-01-01", [2048, 4096], [3000 * 2048, 3000 * 4096], [2048**2, 4096**2])


@pytest.mark.parametrize(
    "config, heads, lengths, path, reason",
    [
        (S2OConfig(tau=0), CPU, (9000, 9000), "dense", "tau=0 visits everything"),
        (S2OConfig(), replace(CUDA, dtype=torch.float32), (9000, 9000), "dense", "attends in float16 or bfloat16"),
        (S2OConfig(), replace(CUDA, dims=(512, 512)), (9000, 9000), "dense", "head_dim up to 256, and this is 512"),
        (S2OConfig(), CPU, (100, 9000), "dense", "100 queries are fewer than a segment of 512"),
        (S2OConfig(crossover=5000), CPU, (4999, 4999), "dense", "from 5000 tokens on"),
        (S2OConfig(crossover=5000), CPU, (5000, 5000), "sparse", "from 5000 tokens on"),
        (S2OConfig(), CPU, (1000, 1000), "dense", "1,000 keys are too few to ask"),
        (S2OConfig(), CPU, (3000, 3000), "dense", f"below {SLOW.keys:,} keys (0.68x at 2,048"),
        (S2OConfig(), CPU, (SLOW.keys, SLOW.keys), "sparse", f"from {SLOW.keys:,} tokens on"),
    ],
)
def test_the_path_comes_with_its_reason(config, heads, lengths, path, reason):
    got, why = choose_path(config, heads, *lengths, lambda: SLOW)
    assert got == path and reason in why


def test_nothing_is_measured_where_the_answer_is_plain():
    def never():
        raise AssertionError

    assert choose_path(S2OConfig(crossover=0), CPU, 600, 600, never)[0] == "sparse"
    assert choose_path(S2OConfig(), CPU, 600, 600, never)[0] == "dense"
    assert choose_path(S2OConfig(), CPU, 6000, 6000, lambda: None) == ("sparse", "where it is measured to be faster")


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
