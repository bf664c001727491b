"""The STATIC benchmark: its baselines allow what our processor allows, and on a GPU it fills its table."""

import json

import pytest
import torch

from hf_infeco.benchmarks import gpu as every_gpu
from hf_infeco.benchmarks.static import baselines, catalogues, gpu, step

pytestmark = pytest.mark.usefixtures("one_thread")

BASELINES = {
    "sorted array": baselines.binary_search,
    "dict": lambda sequences: baselines.dict_trie(sequences, beams=3),
    "marisa-trie": lambda sequences: baselines.marisa_trie(sequences, beams=3),
}


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_allows_what_our_processor_allows(name):
    sequences = catalogues.catalogue(500, tokens=16)
    allowed, ours = BASELINES[name](sequences), step.our_processor(sequences)
    if allowed is None:
        pytest.skip("marisa-trie is not installed")
    (rows,) = catalogues.row_sets(sequences, beams=3, repeats=1)
    for depth in (0, 1, 2, 7):
        ids, scores = rows[:, : catalogues.PROMPT + depth], torch.randn(6, catalogues.TOKENS)
        assert torch.equal(allowed(ids, scores.clone()), ours(ids, scores.clone()))


@pytest.fixture(scope="module")
def measured() -> dict:
    """On the CPU, with the kernel that is there."""
    shape = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, vocab_size=32)
    return gpu.measure([(200, 16), (300, 8)], torch.device("cpu"), shape)


def test_the_gpu_s_table_is_filled(measured):
    assert [(entry["items"], entry["vocabulary"]) for entry in measured["steps"]] == [(200, 16), (300, 8)]
    assert all(len(entry["milliseconds_by_depth"]) == 8 for entry in measured["steps"])
    assert measured["largest_share"] > 0


def test_the_gpu_s_lines_end_the_run_of_every_benchmark(measured, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu, "measure", lambda *_: measured)
    monkeypatch.setattr(gpu, "where", lambda device: {"device": device})
    monkeypatch.setattr(gpu, "results_folder", lambda: tmp_path)
    for other in (every_gpu.s2o_gpu, every_gpu.innerq_gpu):
        monkeypatch.setattr(other, "main", lambda: ["a line of another system"])
    assert every_gpu.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[2:]] == [
        "STATIC step, 200 items, vocabulary 16",
        "STATIC step, 300 items, vocabulary 8",
        "STATIC step, the dearest",
    ]
    assert json.loads((tmp_path / "static_gpu.json").read_text())["steps"] == measured["steps"]
