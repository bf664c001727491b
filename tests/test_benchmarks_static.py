"""The benchmarks of STATIC run, here at a small size, and the baselines allow what our processor allows."""

import json

import pytest
import torch

from hf_infeco.benchmarks import static, static_gpu

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, value in dict(TOKENS=16, REPEATS=4, BEAMS=3, ROWS=6, PROMPT=2, WIDE_VOCABULARY=64).items():
        monkeypatch.setattr(static, name, value)


@pytest.mark.parametrize("baseline", ["dict_trie", "marisa_trie", "binary_search"])
def test_a_baseline_allows_what_our_processor_allows(baseline):
    sequences = static.catalogue(500)
    allowed, ours = getattr(static, baseline)(sequences), static.ours(sequences)
    if allowed is None:
        pytest.skip("marisa-trie is not installed")
    for depth in (0, 1, 2, 7):
        ids, scores = static.row_sets(sequences)[0][:, : 2 + depth], torch.randn(6, 16)
        assert torch.equal(allowed(ids, scores.clone()), ours(ids, scores.clone()))


@pytest.mark.parametrize("part", ["wide", "baselines"])
def test_a_part_is_ready_for_json(part):
    entry = json.loads(json.dumps(static.PARTS[part](300)))
    assert entry["items"] == 300 and entry["milliseconds_by_depth"]


def test_validity_counts_members_and_equal_results():
    counts = static.validity(0, catalogues=4, prompts=2)
    assert counts["beams"] == counts["members"] == counts["same_as_transformers"] == 4 * 2 * 3


def test_the_gpu_s_table_is_filled(monkeypatch):
    """On the CPU, with the kernel that is there."""
    for name, value in dict(ITEMS=(200, 300), VOCABULARIES=(8, 16), TOKENS=16, ROWS=6, REPEATS=2).items():
        monkeypatch.setattr(static_gpu, name, value)
    monkeypatch.setattr(static_gpu, "step_milliseconds", lambda items, *rest: real(min(items, 300), *rest))
    shape = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, vocab_size=32)
    found = static_gpu.measure(torch.device("cpu"), shape)
    assert [(entry["items"], entry["vocabulary"]) for entry in found["steps"]] == [(200, 16), (300, 16), (10**6, 8)]
    assert all(len(entry["milliseconds_by_depth"]) == 8 for entry in found["steps"]) and found["largest_share"] > 0


real = static_gpu.step_milliseconds
