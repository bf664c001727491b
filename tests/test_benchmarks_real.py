"""The benchmark on real models, on the small bundled one: what it counts is what it says."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import DynamicCache

from hf_infeco.benchmarks.innerq.turboquant import gaussian_levels, round_trip
from hf_infeco.benchmarks.measuring import MODEL, Progress
from hf_infeco.benchmarks.real import answers, fetch, layers, lookup, padding, taus, text
from hf_infeco.benchmarks.real.reader import Reader
from hf_infeco.benchmarks.real.ways import CACHES, MAIN, PRESETS, Way

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader(MODEL, "cpu")


@pytest.fixture
def progress(tmp_path) -> Progress:
    return Progress(tmp_path / "p.json")


def test_text_is_scored_as_by_one_forward_of_the_model(reader, progress):
    (entry,) = text.measure_chunks(reader, {"dense": Way()}, {400: 1}, progress)
    (ids,) = reader.windows(400, 1)
    with torch.no_grad():
        logits = reader.model(ids[None]).logits[0].float()
    expected = cross_entropy(logits[200:-1], ids[201:]).exp()
    assert entry["perplexity"] == pytest.approx(float(expected), rel=5e-3)
    assert (entry["scored"], entry["kl"], entry["over_dense"], entry["same_first"]) == (199, 0, 0, 1)


def test_token_by_token_scores_as_many_tokens_and_loses_what_its_cache_loses(reader, progress):
    ways = {name: MAIN[name] for name in ("dense", "InnerQ", "InnerQ small")}
    dense, good, small = text.measure_steps(reader, ways, {400: 1}, 24, progress)
    assert dense["scored"] == 23
    assert 0 == dense["kl"] < good["kl"] < small["kl"]
    assert small["of_dense_bytes"] < good["of_dense_bytes"] < 1


def test_divergence_is_that_of_its_formula():
    rows = torch.randn(2, 300, 7, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(300) % 7
    sums = text.compare(*rows, targets)
    log_q, log_p = rows.log_softmax(-1)
    assert sums["kl"] == pytest.approx(float((log_p.exp() * (log_p - log_q)).sum()), rel=1e-4)
    losses = [-log[torch.arange(300), targets] for log in (log_q, log_p)]
    assert (sums["loss"], sums["dense_loss"]) == tuple(pytest.approx(float(each.sum()), rel=1e-4) for each in losses)
    assert sums["squares"] == pytest.approx(float((losses[0] - losses[1]).square().sum()), rel=1e-4)


@pytest.mark.parametrize("task", lookup.TASKS)
def test_every_answer_stands_in_the_document_that_is_asked_for(reader, task):
    document = lookup.TASKS[task](reader, 700, 3)
    assert len(document.ids) == 700
    shown = reader.tokenizer.decode(document.ids)
    for question, answer in document.questions:
        code = reader.tokenizer.decode(answer).strip()
        assert len(code) == 5 and code.isdigit() and code in shown
        subject = reader.tokenizer.decode(question).rsplit(".")[-1].rsplit("?")[-1].strip()
        assert f"{subject} {code}".lower() in shown.lower()
    other = lookup.TASKS[task](reader, 700, 4)
    assert not torch.equal(other.ids, document.ids)


def test_an_answer_is_greedy_if_decoding_gives_it(reader):
    (ids,) = reader.windows(300, 1)
    cache = reader.read(Way(), ids)
    question = reader.text[:5].tolist()
    fed, answer = torch.tensor(question), []
    decoded = Way().kept(cache, reader.model.config)
    for _ in range(4):
        answer.append(int(reader.go_on(Way(), decoded, fed, len(fed))[-1].argmax()))
        fed = torch.tensor(answer[-1:])
    for wrong in range(4):
        other = [token + (at == wrong) for at, token in enumerate(answer)]
        kept = [Way().kept(cache, reader.model.config) for _ in range(2)]
        assert lookup.is_greedy(reader, Way(), kept[0], question, answer)
        assert not lookup.is_greedy(reader, Way(), kept[1], question, other)


def test_lookup_counts_by_way_and_against_dense(reader, progress, monkeypatch):
    outcomes = {"dense": [True, True, False], "S2O": [True, False, True]}
    monkeypatch.setattr(lookup, "_ask", lambda *_: outcomes)
    dense, sparse = lookup.measure_lookup(
        reader, {name: MAIN[name] for name in outcomes}, {("pairs", 300): 2}, progress
    )
    assert (dense["correct"], sparse["correct"], sparse["total"], sparse["right_in_both"]) == (4, 4, 6, 2)
    assert sparse["right_in_dense"] == 4


def test_answers_of_the_dense_model_are_equal_to_themselves(reader, progress):
    ways = {name: MAIN[name] for name in ("dense", "InnerQ")}
    dense, packed = answers.measure_answers(reader, ways, 300, 2, 20, progress)
    assert (dense["equal_answers"], dense["equal_tokens"]) == (2, 20)
    assert 0 <= packed["equal_tokens"] <= 20


def test_padding_costs_the_dense_model_nothing(reader):
    entries = padding.measure_padding(reader, {"dense": Way(), "InnerQ small": PRESETS["InnerQ small"]}, rows=2)
    kl = {(entry["way"], entry["pads"]): entry["kl"] for entry in entries}
    assert kl["dense", 0] == 0 and kl["dense", 40] < 1e-3 < kl["InnerQ small", 0]


def test_layers_and_taus_agree_that_more_is_missed_at_a_larger_tau(reader, progress, monkeypatch):
    by_layer = layers.measure_layers(reader, (1024,))
    assert [entry["layer"] for entry in by_layer] == [0, 1, 2, 3]
    assert all(entry["missed"] == pytest.approx(entry["truly_missed"], rel=0.5, abs=0.01) for entry in by_layer)
    monkeypatch.setattr(taus, "TAUS", (0.0, 0.01, 0.1))
    quality = taus.measure_taus(reader, (1024,), progress)
    assert quality[0]["density"] == 1 > quality[1]["density"] > quality[2]["density"]
    assert quality[0]["kl"] < quality[1]["kl"] < quality[2]["kl"]
    speed = taus.measure_speed(reader, (1024,))
    assert [entry["tau"] for entry in speed] == [0.0, 0.01, 0.1]
    assert speed[1]["error"] < speed[2]["error"]


def test_every_cache_keeps_all_tokens_of_a_prompt(reader):
    (ids,) = reader.windows(256, 1)
    exact = reader.read(Way(), ids)
    for name, way in CACHES.items():
        kept = way.kept(exact, reader.model.config)
        assert kept.get_seq_length() == 256, name
    assert isinstance(CACHES["dense"].kept(exact, reader.model.config), DynamicCache)


def test_a_rotated_gaussian_loses_what_lloyd_and_max_say():
    """Mean squared errors of the best 4, 8 and 16 levels for a Gaussian (Max 1960, table I)."""
    key = torch.randn(1, 1, 500, 1024, generator=torch.Generator().manual_seed(0)) * 7
    for bits, expected in ((2, 0.1175), (3, 0.03454), (4, 0.009497)):
        assert len(gaussian_levels(bits)) == 2**bits
        lossy, _ = round_trip(bits, bits)(key, key)
        assert float((lossy - key).square().mean() / key.square().mean()) == pytest.approx(expected, rel=0.01)


def test_one_large_channel_costs_a_rotated_cache_no_more_than_others():
    key = torch.randn(1, 1, 500, 64, generator=torch.Generator().manual_seed(0))
    key[..., 5] *= 40
    lossy, _ = round_trip(3, 3)(key, key)
    assert float((lossy - key).square().sum() / key.square().sum()) == pytest.approx(0.0345, rel=0.2)


def test_a_model_that_is_there_is_not_fetched_again(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "model_folder", lambda name: tmp_path)
    monkeypatch.setattr(fetch, "_download", lambda *_: pytest.fail("fetched"))
    (tmp_path / "config.json").write_text("{}")
    assert fetch.fetch("smollm2") == tmp_path
