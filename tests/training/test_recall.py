"""The recall model's text, task, training and bundled weights."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, LlamaForCausalLM

from hf_infeco import CACHE_NAME
from hf_infeco.training.testbed.accuracy import Accuracy
from hf_infeco.training.testbed.recall import evaluate, needles, rows, text
from hf_infeco.training.testbed.recall.lookup_heads import wire_lookup_heads
from hf_infeco.training.testbed.recall.train import Stage, Trainer, recall_config, save

RECALL = Path(__file__).resolve().parents[2] / "examples" / "models" / "recall"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(RECALL)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(RECALL).eval()


@pytest.fixture(scope="module")
def text_ids(tokenizer):
    return torch.tensor(text.encode_text(tokenizer, text.held_out_text()))


def document(tokenizer, text_ids, seed, seq_len=300, num_needles=5):
    return needles.sample_document(tokenizer, text_ids, seq_len, num_needles, torch.Generator().manual_seed(seed))


def test_held_out_text_is_not_trained_on():
    trained = "\n".join(text.training_text())
    held_out = text.held_out_text()
    passages = [held_out[start : start + 200] for start in range(0, len(held_out) - 200, 20_000)]
    assert not [passage for passage in passages if passage in trained]


def test_text_that_spells_a_value_stays_text(tokenizer):
    ids = text.encode_text(tokenizer, "bug #12 of @oslo")
    assert tokenizer.decode(ids) == "bug #12 of @oslo"
    assert not set(ids) & set(tokenizer.convert_tokens_to_ids([*text.KEYS, *text.VALUES]))


def test_equal_seeds_hide_equal_needles(tokenizer, text_ids):
    first, again, other = (document(tokenizer, text_ids, seed) for seed in (3, 3, 4))
    assert torch.equal(first.document, again.document) and torch.equal(first.answers, again.answers)
    assert not torch.equal(first.document, other.document)


def test_answers_stand_behind_their_keys(tokenizer, text_ids):
    sample = document(tokenizer, text_ids, seed=0)
    assert len(sample.document) == 300
    for key, answer in zip(sample.keys, sample.answers):
        (place,) = (sample.document == key).nonzero().flatten()
        assert torch.equal(sample.document[place + 1 : place + 3], answer)


def test_needles_read_as_names_and_numbers(tokenizer, text_ids):
    sample = document(tokenizer, text_ids, seed=0)
    key, _, values = needles.describe(tokenizer, sample)[0].partition(" -> ")
    assert key in text.KEYS and set(values.split()) <= set(text.VALUES)
    assert key + values.replace(" ", "") in tokenizer.decode(sample.document)


def test_a_question_is_one_ask_and_one_key(tokenizer):
    by_name = needles.question_ids(tokenizer, "@oslo")
    assert tokenizer.decode(by_name) == "<ask>@oslo"
    assert torch.equal(needles.question_ids(tokenizer, int(by_name[1])), by_name)
    with pytest.raises(ValueError, match="not a key"):
        needles.question_ids(tokenizer, "#12")


def test_too_many_needles_are_refused(tokenizer, text_ids):
    with pytest.raises(ValueError, match="1 to 64"):
        document(tokenizer, text_ids, seed=0, num_needles=65)
    with pytest.raises(ValueError, match="text tokens"):
        document(tokenizer, text_ids, seed=0, seq_len=15)


def test_training_rows_ask_only_for_what_was_told(tokenizer, text_ids):
    batch = rows.RowSampler(tokenizer, text_ids, seed=0).batch(4, 256, 8, 16, 4, stretch=True)
    values = set(needles.value_ids(tokenizer).tolist())
    for ids, kinds in zip(batch.ids.tolist(), batch.kinds.tolist()):
        answers = [place for place, kind in enumerate(kinds) if kind == rows.ANSWER]
        assert len(answers) >= 2 * 4 and {ids[place] for place in answers} <= values
        for place in answers[::2]:
            key, pair = ids[place - 1], ids[place : place + 2]
            told = ids.index(key)
            assert told < place - 1 and ids[told + 1 : told + 3] == pair
    assert (batch.positions.diff() > 0).all() and batch.positions.max() < 32768


def test_bundled_model_answers_needles_in_1k_of_text(model, tokenizer):
    accuracy = evaluate.recall_accuracy(model, tokenizer, 1024, 2, 32, seed=11, progress=False)
    assert accuracy.total == 64
    assert accuracy.rate >= 0.95, accuracy


def test_questions_leave_the_document_cache_as_it_was(model, tokenizer, text_ids):
    sample = document(tokenizer, text_ids, seed=2)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(sample.document[None], **{CACHE_NAME: cache})
    once = evaluate.ask(model, tokenizer, cache, sample.keys)
    assert cache.get_seq_length() == 300
    assert torch.equal(once, evaluate.ask(model, tokenizer, cache, sample.keys))


def test_bundled_model_reads_real_text_and_chunks_change_nothing(tokenizer):
    model = AutoModelForCausalLM.from_pretrained(RECALL, dtype=torch.float32).eval()
    whole = evaluate.perplexity(model, tokenizer, 1024, 2, progress=False)
    chunked = evaluate.perplexity(model, tokenizer, 1024, 2, chunk=200, progress=False)
    assert 1 < whole < 40
    assert chunked == pytest.approx(whole, rel=1e-4)


def test_cache_factory_makes_one_cache_per_document(model, tokenizer):
    made = []

    def factory():
        made.append(DynamicCache(config=model.config))
        return made[-1]

    evaluate.recall_accuracy(model, tokenizer, 200, 3, 2, seed=0, cache_factory=factory, progress=False)
    assert [cache.get_seq_length() for cache in made] == [200] * 3


def test_wilson_interval_holds_the_rate_and_stays_a_share():
    low, high = Accuracy(99, 100).interval
    assert 0.94 < low < 0.99 < high < 1.0
    assert Accuracy(10, 10).interval == pytest.approx((0.722, 1.0), abs=1e-3)


def test_training_runs_saves_and_resumes(tokenizer, text_ids, tmp_path):
    def trainer():
        torch.manual_seed(0)
        config = recall_config(tokenizer)
        config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.head_dim = 32, 32, 2, 32
        model = LlamaForCausalLM(config)
        wire_lookup_heads(model)
        stage = Stage(64, 2, 4, 8, 2, True, 1.0, 3, 2.0, 1e-3, 1e-3)
        return Trainer(model, rows.RowSampler(tokenizer, text_ids), (stage, stage))

    straight = trainer()
    finished = straight.run(progress=False)
    assert next(finished) == 0
    resumed = trainer()
    torch.save(straight.state_dict(), tmp_path / "run.pt")
    resumed.load_state_dict(torch.load(tmp_path / "run.pt", weights_only=True))
    assert list(finished) == list(resumed.run(progress=False)) == [1]
    assert straight.taken == resumed.taken == 6
    for name, weight in straight.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name
    save(straight.model, tokenizer, tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16
