"""constrained_beam_search finds what transformers' beam search finds with our processor, and on tiny sets the best."""

import numpy as np
import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

import hf_infeco
from hf_infeco.static import StaticIndex, StaticLogitsProcessor, constrained_beam_search, static_generate

from .catalogues import EOS, PAD, VOCAB, prompt, random_index, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def by_generate(model, inputs, index, num_beams, eos_token_id, prompt_length=7, **settings):
    """Ranks and scores of transformers' beam search with our processor; rank -1 for surplus beams."""
    steps = index.length + (eos_token_id is not None)
    processor = StaticLogitsProcessor(index, prompt_length=prompt_length, eos_token_id=eos_token_id, **settings)
    out = model.generate(
        **inputs,
        logits_processor=[processor],
        num_beams=num_beams,
        num_return_sequences=num_beams,
        max_new_tokens=steps,
        do_sample=False,
        length_penalty=0.0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    real = out.sequences_scores > -1e8
    ranks = index.lookup(out.sequences[:, prompt_length:]).where(real, -1)
    return ranks.view(-1, num_beams), out.sequences_scores.where(real, float("-inf")).view(-1, num_beams)


def padded() -> dict[str, torch.Tensor]:
    mask = torch.ones(2, 7, dtype=torch.int64)
    mask[1, :3] = 0
    return {"input_ids": prompt().masked_fill(mask == 0, PAD), "attention_mask": mask}


def score_all(model, inputs: torch.Tensor, index: StaticIndex, eos_token_id: int | None) -> torch.Tensor:
    """Log-probability of each sequence of the index behind one prompt `[1, T]`, by one plain forward pass each."""
    scores = []
    for row in index.sequences(torch.arange(index.num_sequences)).tolist():
        tokens = [token for token in row if token >= 0] + ([] if eos_token_id is None else [eos_token_id])
        logits = model(torch.cat([inputs, torch.tensor([tokens])], 1)).logits[0, inputs.shape[1] - 1 : -1]
        scores.append(logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None]).sum())
    return torch.stack(scores)


@pytest.mark.parametrize("num_beams", [2, 8, 70, 400])
@pytest.mark.parametrize(("variable", "eos"), [(False, None), (False, EOS), (True, EOS)])
def test_it_finds_what_generate_finds_with_the_processor(model, num_beams, variable, eos):
    index, _ = random_index(0, variable=variable)
    found = constrained_beam_search(model, padded(), index, num_beams, eos_token_id=eos)
    ranks, scores = by_generate(model, padded(), index, num_beams, eos)
    assert torch.equal(found.ranks, ranks)
    torch.testing.assert_close(found.scores, scores, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("variable", "eos"), [(False, None), (True, EOS), (True, None)])
def test_with_beams_enough_it_ranks_the_whole_set(model, variable, eos):
    index, _ = random_index(1, count=40, length=3, variable=variable)
    found = constrained_beam_search(model, prompt(1), index, 40, eos_token_id=eos)
    expected, order = score_all(model, prompt(1), index, eos).sort(descending=True)
    assert torch.equal(found.ranks[0, : index.num_sequences], order)
    torch.testing.assert_close(found.scores[0, : index.num_sequences], expected, atol=1e-5, rtol=1e-5)
    assert (found.ranks[0, index.num_sequences :] == -1).all()
    assert (found.scores[0, index.num_sequences :] == float("-inf")).all()


def test_one_sequence_or_one_beam_is_enough(model):
    only = StaticIndex.build([[5, 6, 7]], vocab_size=VOCAB)
    assert constrained_beam_search(model, prompt(), only, 3).ranks.tolist() == [[0, -1, -1]] * 2
    index, _ = random_index(0)
    greedy = model.generate(
        prompt(), logits_processor=[StaticLogitsProcessor(index, prompt_length=7)], max_new_tokens=4, do_sample=False
    )
    found = constrained_beam_search(model, prompt(), index, 1)
    assert torch.equal(found.sequences[:, 0], greedy[:, 7:])


def test_items_come_with_their_scores_and_share_sequences(model):
    index = StaticIndex.build([[5, 6], [9, 9], [5, 6]], vocab_size=VOCAB, item_ids=["a", "b", "c"])
    found = constrained_beam_search(model, prompt(), index, 4)
    for row in range(2):
        items = dict(found.items[row])
        assert items.keys() == {"a", "b", "c"} and items["a"] == items["c"]
        scores = [score for _, score in found.items[row]]
        assert scores == sorted(scores, reverse=True) and items["a"] != items["b"]
    assert found.sequences[0].tolist()[2:] == [[-1, -1], [-1, -1]]
    fresh = constrained_beam_search(model, prompt(), index.subset(["b"]), 4)
    assert [[item for item, _ in row] for row in fresh.items] == [["b"], ["b"]]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("variable", "eos"), [(False, None), (True, EOS)])
def test_normalizing_over_a_level_compares_with_its_tokens_only(model, bias, variable, eos):
    """Against plain forward passes whose log-softmax is over the level's tokens."""
    model = tiny_model()
    if bias:
        head = torch.nn.Linear(64, VOCAB)
        torch.manual_seed(1)
        torch.nn.init.normal_(head.bias)
        model.set_output_embeddings(head)
    index, _ = random_index(1, count=40, length=3, variable=variable)
    found = constrained_beam_search(model, prompt(1), index, 40, normalize="level", eos_token_id=eos)
    bounds = index.trie.alphabet_start.tolist()
    ends = [] if eos is None else [eos]
    for rank, score in zip(found.ranks[0].tolist(), found.scores[0].tolist(), strict=True):
        if rank < 0:
            continue
        tokens = [token for token in index.sequences(torch.tensor([rank]))[0].tolist() if token >= 0] + ends
        logits = model(torch.cat([prompt(1), torch.tensor([tokens])], 1)).logits[0, 6:-1]
        total = 0.0
        for depth, token in enumerate(tokens):
            level = index.trie.alphabet[bounds[depth] : bounds[depth + 1]].tolist() if depth < 3 else []
            total += (logits[depth, token] - logits[depth, level + ends].logsumexp(0)).item()
        assert score == pytest.approx(total, abs=1e-5)
    assert sorted(found.ranks[0].tolist())[-index.num_sequences :] == list(range(index.num_sequences))
    assert "forward" not in vars(model.get_output_embeddings())


def test_it_is_a_custom_generate_too(model):
    index, _ = random_index(0)
    found = model.generate(**padded(), custom_generate=static_generate, index=index, num_beams=8, max_new_tokens=4)
    assert torch.equal(found.ranks, constrained_beam_search(model, padded(), index, 8).ranks)


def test_a_patched_model_keeps_its_cache_and_finds_the_same():
    """Windows as long as the context: the cache is exact, and its rows are repeated and reordered."""
    config = dict(innerq=dict(sink=32, recent=96), s2o=dict(tau=0.0))
    index, _ = random_index(0)
    model = tiny_model()
    expected = constrained_beam_search(model, padded(), index, 8)
    model.set_attn_implementation("sdpa")
    with hf_infeco.patched(model, **config):
        found = constrained_beam_search(model, padded(), index, 8)
    assert torch.equal(found.ranks, expected.ranks)
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("settings", [dict(use_cache=False), dict(prefill_chunk_size=3)], ids=str)
def test_without_a_cache_and_in_chunks_it_finds_the_same(model, settings):
    index, _ = random_index(0)
    found = constrained_beam_search(model, padded(), index, 8, **settings)
    assert torch.equal(found.ranks, constrained_beam_search(model, padded(), index, 8).ranks)


def test_embeddings_as_input(model):
    index, _ = random_index(0)
    inputs = {"inputs_embeds": model.get_input_embeddings()(prompt())}
    found = constrained_beam_search(model, inputs, index, 8)
    assert torch.equal(found.ranks, constrained_beam_search(model, prompt(), index, 8).ranks)


def test_an_encoder_decoder():
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=VOCAB, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, decoder_start_token_id=PAD
    )
    model = T5ForConditionalGeneration(config).eval()
    index, _ = random_index(0)
    found = constrained_beam_search(model, prompt(), index, 8)
    ranks, scores = by_generate(model, {"input_ids": prompt()}, index, 8, None, prompt_length=1)
    assert torch.equal(found.ranks, ranks)
    torch.testing.assert_close(found.scores, scores, atol=1e-5, rtol=1e-5)


def test_bart_needs_no_end_forced(model):
    torch.manual_seed(0)
    sizes = dict(d_model=32, encoder_ffn_dim=64, decoder_ffn_dim=64, encoder_layers=1, decoder_layers=1)
    special = dict(bos_token_id=1, pad_token_id=PAD, eos_token_id=EOS, decoder_start_token_id=EOS)
    config = BartConfig(vocab_size=VOCAB, encoder_attention_heads=2, decoder_attention_heads=2, **sizes, **special)
    bart = BartForConditionalGeneration(config).eval()
    bart.generation_config.forced_eos_token_id = EOS
    index, _ = random_index(0)
    found = constrained_beam_search(bart, prompt(), index, 8)
    ranks, scores = by_generate(bart, {"input_ids": prompt(), "forced_eos_token_id": None}, index, 8, None, 1)
    assert torch.equal(found.ranks, ranks)
    torch.testing.assert_close(found.scores, scores, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", [np.array, np.ndarray.tolist])
def test_inputs_may_be_arrays_and_lists(model, form):
    index, _ = random_index(0, variable=True)
    expected = constrained_beam_search(model, padded(), index, 8, eos_token_id=EOS)
    inputs = {name: form(value.numpy()) for name, value in padded().items()}
    found = constrained_beam_search(model, inputs, index, np.int64(8), eos_token_id=np.int32(EOS))
    assert torch.equal(found.ranks, expected.ranks)
    plain = constrained_beam_search(model, form(prompt().numpy()), index, 8)
    assert torch.equal(plain.ranks, constrained_beam_search(model, prompt(), index, 8).ranks)


@pytest.mark.parametrize("eos", [VOCAB, -1, [1, 2]])
def test_an_end_token_that_is_none_is_refused(model, eos):
    index, _ = random_index(0)
    with pytest.raises(ValueError, match=r"eos_token_id=.* must be one token of the index's vocabulary"):
        constrained_beam_search(model, prompt(), index, 2, eos_token_id=eos)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(num_beams=0), "num_beams=0"),
        (dict(normalize="beam"), "normalize='beam'"),
        (dict(do_sample=True), "sampling"),
        (dict(num_return_sequences=2), "num_return_sequences"),
        (dict(no_repeat_ngram_size=2), "NoRepeatNGramLogitsProcessor"),
    ],
)
def test_what_it_does_not_do_is_refused(model, settings, message):
    index, _ = random_index(0)
    with pytest.raises(ValueError, match=message):
        constrained_beam_search(model, prompt(), index, **{"num_beams": 2, **settings})


def test_an_index_of_another_vocabulary_is_refused(model):
    index = StaticIndex.build([[5, 6]], vocab_size=VOCAB + 1)
    with pytest.raises(ValueError, match=f"scores {VOCAB} tokens.*vocab_size={VOCAB + 1}"):
        constrained_beam_search(model, prompt(), index, 2)
