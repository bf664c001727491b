"""The InnerQ benchmark: what it compares with computes what it says, and its numbers are those it measured."""

import pytest
import torch
import torch.nn.functional as F
from transformers import DynamicCache, LlamaConfig

from hf_infeco import CACHE_NAME, InnerQCache
from hf_infeco.benchmarks.innerq import caches, gpu, kivi, quality, sizes, step
from hf_infeco.benchmarks.measuring import MODEL
from hf_infeco.innerq.layer import InnerQLayer
from hf_infeco.kernels.innerq.reference import GROUP
from hf_infeco.training.testbed.recall.evaluate import ask
from hf_infeco.training.testbed.recall.needles import sample_document

pytestmark = pytest.mark.usefixtures("one_thread")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("ratio, tiles, dim", [(1, 17, 128), (4, 40, 64), (8, 3, 96)])
def test_kivi_s_kernel_attends_what_its_formula_gives_back(ratio, tiles, dim):
    key, value = (normal(2, 2, tiles * GROUP, dim, seed=seed) + normal(1, 2, 1, dim, seed=9) for seed in (0, 1))
    query = normal(2, 2 * ratio, 1, dim, seed=2)
    windows = [tuple(normal(2, 2, n, dim, seed=n + i) for i in (0, 1)) for n in (32, 96)]
    pieces = [kivi.round_trip(key, value), *windows]
    keys, values = (torch.cat([piece[i] for piece in pieces], 2) for i in (0, 1))
    expected = F.scaled_dot_product_attention(query, keys, values, scale=0.2, enable_gqa=True)
    torch.testing.assert_close(kivi.attend(query, kivi.pack(key, value), windows, 0.2), expected, rtol=1e-4, atol=1e-5)


def test_kivi_groups_run_along_the_outer_dimension():
    """Keys that are equal over a tile's tokens, and values that are equal over channels, come back as they were."""
    key = normal(1, 1, 1, 64).half().float().expand(1, 1, GROUP, 64)
    value = normal(1, 1, GROUP, 1).half().float().expand(1, 1, GROUP, 64)
    assert all(map(torch.equal, kivi.round_trip(key, value), (key, value)))
    other_key, other_value = kivi.round_trip(value, key)
    assert not torch.equal(other_key, value) and not torch.equal(other_value, key)


def test_a_round_trip_layer_loses_older_tokens_once_and_keeps_its_windows():
    layer = caches.RoundTripLayer(lambda key, value: (key + 1, value + 1), sink=4, recent=40)
    key, value = normal(1, 2, 300, 64), normal(1, 2, 300, 64, seed=1)
    got = layer.update(key[:, :, :200], value[:, :, :200])
    assert torch.equal(got[0], key[:, :, :200])
    for at in range(200, 300):
        layer.update(key[:, :, at : at + 1], value[:, :, at : at + 1])
    lost = torch.zeros(300)
    lost[4 : 4 + (300 - 44) // GROUP * GROUP] = 1
    assert torch.equal(layer.keys, key + lost[:, None]) and torch.equal(layer.values, value + lost[:, None])


@pytest.fixture(scope="module")
def reader() -> quality.Reader:
    return quality.Reader(MODEL, "cpu")


def test_asking_side_by_side_gives_the_answers_of_asking_apart(reader):
    needles = sample_document(reader.tokenizer, reader.text, 600, 16, torch.Generator().manual_seed(0))
    cache = caches.filled(caches.MAIN["dense"], reader.dense.config, reader.prefill(needles.document))
    keys = torch.cat([needles.keys, needles.keys.flip(0)])
    apart = ask(reader.dense, reader.tokenizer, cache, keys)
    assert torch.equal(quality.ask_side_by_side(reader, cache, keys), apart)
    assert (apart[:16] == needles.answers).float().mean() > 0.9
    assert cache.get_seq_length() == 600


def test_a_filled_cache_is_what_a_prefill_leaves(reader):
    ids = reader.text[:500]
    cache = InnerQCache(reader.packed.config)
    with torch.no_grad():
        reader.packed(ids[None], **{CACHE_NAME: cache})
    filled = caches.filled(caches.MAIN["default"], reader.packed.config, reader.prefill(ids))
    for one, other in zip(filled.layers, cache.layers, strict=True):
        torch.testing.assert_close(one.keys, other.keys, rtol=0.05, atol=0.05)  # two ways to attend in bfloat16


def test_perplexity_of_the_dense_cache_is_that_of_the_model(reader):
    seq_len = 400
    loss = quality._losses(reader, seq_len, 0, {"dense": caches.MAIN["dense"]})["dense"]
    window = torch.cat([torch.tensor([reader.tokenizer.bos_token_id]), reader.text[: seq_len - 1]])
    with torch.no_grad():
        logits = reader.dense(window[None]).logits[0, seq_len // 2 : -1].float()
    assert loss == pytest.approx(float(F.cross_entropy(logits, window[seq_len // 2 + 1 :], reduction="sum")), rel=5e-3)


def test_bytes_of_a_quantizer_s_own_tensors_are_counted():
    exact = [sizes.tokens(1024, kv_heads=1)]
    for name, make in sizes.quantized_caches().items():
        found = sizes.nbytes(caches.filled(make, sizes.config(1, 1), exact))
        assert found == 2 * 1024 * 128 * 4.5 / 8, name  # 4 bits, and a scale and zero point per 64 numbers
    dense = caches.filled(lambda config: DynamicCache(config=config), sizes.config(1, 1), exact)
    assert sizes.nbytes(dense) == 2 * 2 * 1024 * 128


def test_every_way_to_attend_is_timed():
    entries = step.measure_step({(1, 512): (2,)}, repeats=1)
    assert [entry["attention"] for entry in entries] == [*caches.SETTINGS, "KIVI-2", "bf16", "fp32"]
    for entry in entries:
        assert entry["seconds"] > 0 and entry["bytes"] <= 4 * 2 * 8 * 512 * 128
    by_name = {entry["attention"]: entry for entry in entries}
    assert by_name["bf16"]["over_bf16"] == by_name["fp32"]["over_fp32"] == 1
    held = [by_name[name]["bytes"] for name in ("small", "base", "default", "bf16")]
    assert held == sorted(set(held))


def test_the_gpu_benchmark_fills_its_tables(monkeypatch):
    """On the CPU, in small, with dense attention by whatever kernel there is."""
    monkeypatch.setattr(gpu, "COPIED", 2**20)
    monkeypatch.setattr(gpu, "REPEATS", 1)
    monkeypatch.setattr(gpu, "PREFILL", 128)
    monkeypatch.setattr(gpu, "STEPS", 1)
    monkeypatch.setattr(gpu, "dense_by", lambda _, *qkv: F.scaled_dot_product_attention(*qkv, enable_gqa=True))
    entries = gpu.measure_step({2: (256,)}, torch.device("cpu"))
    assert [entry["cache"] for entry in entries] == list(caches.SETTINGS)
    assert all(entry["innerq_us"] > 0 and 0.01 < entry["error"] < 0.5 for entry in entries)
    small = LlamaConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        head_dim=64, vocab_size=97,
    )  # fmt: skip
    measured = gpu.measure_model(small, (256,), torch.device("cpu"))
    assert [entry["cache"] for entry in measured] == list(caches.MAIN)
    assert measured[1]["kv_bytes"] < measured[0]["kv_bytes"] == 2 * 2 * 256 * 64 + 2 * 2 * 2 * 64


def test_an_empty_update_shows_all_that_a_layer_holds():
    layer = InnerQLayer()
    layer.update(*(normal(1, 8, 300, 128, seed=seed).bfloat16() for seed in (0, 1)))
    query = normal(1, 16, 1, 128, seed=2).bfloat16()
    expected = F.scaled_dot_product_attention(query, layer.keys, layer.values, scale=step.SCALE, enable_gqa=True)
    torch.testing.assert_close(step._packed_run(layer, query)(), expected, rtol=0.02, atol=0.02)


def test_pictures_show_the_numbers():
    pytest.importorskip("matplotlib", reason="the extra [bench] is not installed")
    from hf_infeco.benchmarks.innerq import plots

    entries = [{"cache": name, "tokens": n, "of_bf16": n / 1e5} for name in ("dense", "base") for n in (2048, 1024)]
    (line,) = plots.sizes(entries).axes[0].lines
    assert line.get_label() == "base" and list(zip(*line.get_data())) == [(1024, 0.01024), (2048, 0.02048)]
    cell = {"batch": 1, "ratio": 4, "attention": "base", "tokens": 1024, "seconds": 0.002, "of_bandwidth": 0.5}
    time, share = plots.step([cell, cell | {"ratio": 8, "seconds": 1}, cell | {"batch": 8, "seconds": 1}]).axes
    assert list(time.lines[0].get_ydata()) == [2] and list(share.lines[0].get_ydata()) == [50]
    marks = [{"cache": "base", "tokens": 4096, "bits": 3.5, "over_dense": 0.01}, {"cache": "x", "tokens": 4096}]
    axis = plots.perplexity(marks).axes[0]
    assert axis.collections[0].get_offsets().tolist() == [[3.5, 1.0]] and len(axis.collections) == 1
    assert list(plots.errors([{"cache": "base", "error_by_layer": [0.1, 0.2]}]).axes[0].lines[0].get_ydata()) == [
        0.1,
        0.2,
    ]
