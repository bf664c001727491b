"""StaticLogitsProcessor in every mode of `generate`, against transformers' own prefix constraint with a dict."""

import logging

import numpy as np
import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    LogitsProcessorList,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_infeco.static import StaticIndex, StaticLogitsProcessor

from .catalogues import EOS, PAD, VOCAB, DictTrie, prompt, random_index, random_sequences, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")
MODES = {
    "greedy": dict(do_sample=False),
    "sampling": dict(do_sample=True),
    "beams": dict(do_sample=False, num_beams=8, num_return_sequences=8, length_penalty=0.0),
    "beams, scores normalized again": dict(
        do_sample=False, num_beams=8, num_return_sequences=8, length_penalty=0.0, renormalize_logits=True
    ),
    "sampling beams": dict(do_sample=True, num_beams=5, num_return_sequences=5, length_penalty=0.0),
}


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def run(model, ids, mask=None, **settings):
    torch.manual_seed(0)
    mask = torch.ones_like(ids) if mask is None else mask
    settings = {"max_new_tokens": 6, "return_dict_in_generate": True, "output_scores": True, **settings}
    return model.generate(ids, attention_mask=mask, **settings)


def members(sequences: list[list[int]], generated: torch.Tensor) -> list[bool]:
    """Whether each row, up to its end token, is one of the sequences."""
    whole = {tuple(sequence) for sequence in sequences}
    rows = [row[: row.index(EOS)] if EOS in row else row for row in generated.tolist()]
    return [tuple(token for token in row if token != PAD) in whole for row in rows]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("variable", [False, True])
def test_it_does_what_transformers_prefix_constraint_does(model, mode, variable):
    index, sequences = random_index(0, variable=variable)
    processor = StaticLogitsProcessor(index, prompt_length=7, eos_token_id=EOS)
    got = run(model, prompt(), logits_processor=[processor], **MODES[mode])
    plain = DictTrie(sequences, EOS).allowed_fn(7)
    expected = run(model, prompt(), prefix_allowed_tokens_fn=plain, **MODES[mode])
    assert torch.equal(got.sequences, expected.sequences)
    if "num_beams" in MODES[mode]:
        assert torch.equal(got.sequences_scores, expected.sequences_scores)
    assert all(members(sequences, got.sequences[:, 7:])) and processor.valid(got.sequences).all()


def test_scores_of_a_wide_dtype_and_with_strides_take_the_reference(model):
    index, _ = random_index(0)
    processor = StaticLogitsProcessor(index, prompt_length=2)
    scores = torch.randn(3, VOCAB)
    expected = processor(torch.ones(3, 2, dtype=torch.int64), scores.clone())
    strided = torch.stack([scores, scores], 2)[:, :, 0]
    assert torch.equal(processor(torch.ones(3, 2, dtype=torch.int64), strided), expected)
    halves = processor(torch.ones(3, 2, dtype=torch.int64), scores.bfloat16())
    assert torch.equal(halves.isfinite(), expected.isfinite()) and halves.dtype == torch.bfloat16


def test_left_padding_changes_nothing(model):
    index, _ = random_index(0)
    ids, mask = prompt(), torch.ones(2, 7, dtype=torch.int64)
    mask[1, :4] = 0
    processor = StaticLogitsProcessor(index, prompt_length=7, eos_token_id=EOS)
    padded = run(model, ids.masked_fill(mask == 0, PAD), mask, logits_processor=[processor], **MODES["beams"])
    alone = StaticLogitsProcessor(index, prompt_length=3, eos_token_id=EOS)
    expected = run(model, ids[1:, 4:], logits_processor=[alone], **MODES["beams"])
    assert torch.equal(padded.sequences[8:, 7:], expected.sequences[:, 3:])


def test_embeddings_as_input_start_at_zero(model):
    index, _ = random_index(0)
    processor = StaticLogitsProcessor(index, prompt_length=0, eos_token_id=EOS)
    embeds = model.get_input_embeddings()(prompt())
    out = model.generate(inputs_embeds=embeds, logits_processor=[processor], max_new_tokens=6, **MODES["beams"])
    expected = StaticLogitsProcessor(index, prompt_length=7, eos_token_id=EOS)
    assert torch.equal(out, run(model, prompt(), logits_processor=[expected], **MODES["beams"]).sequences[:, 7:])


@pytest.mark.parametrize("mode", ["greedy", "beams"])
def test_an_encoder_decoder_starts_at_one(mode):
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=VOCAB, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, decoder_start_token_id=PAD
    )
    model = T5ForConditionalGeneration(config).eval()
    index, sequences = random_index(0)
    processor = StaticLogitsProcessor(index, prompt_length=1, eos_token_id=EOS)
    out = run(model, prompt(), logits_processor=[processor], eos_token_id=EOS, **MODES[mode])
    assert all(members(sequences, out.sequences[:, 1:]))


@pytest.mark.parametrize("draft", ["prompt lookup", "assistant"])
def test_drafts_that_leave_the_index_are_rejected_and_no_error(model, draft):
    index, sequences = random_index(0)
    ids = torch.tensor([[50, 51, 52, *sequences[0], 50, 51, 52, *sequences[0][:1]]]).repeat(1, 3)
    length = ids.shape[1]
    how = {"prompt_lookup_num_tokens": 3} if draft == "prompt lookup" else {"assistant_model": tiny_model()}
    expected = run(model, ids, logits_processor=[StaticLogitsProcessor(index, prompt_length=length, eos_token_id=EOS)])
    processor = StaticLogitsProcessor(index, prompt_length=length, eos_token_id=EOS)
    got = run(model, ids, logits_processor=[processor], do_sample=False, **how)
    assert torch.equal(got.sequences, expected.sequences) and processor.valid(got.sequences).all()


@pytest.mark.parametrize("anchor", [[99], [99, 97], [99, 99, 97]], ids=str)
def test_several_ids_in_one_output_each_behind_its_anchor(model, anchor):
    """The anchor is forced at fixed places here, as a trained model would write it."""
    index, sequences = random_index(0)
    end, places = 98, (9, 18)
    forced = {place + at: token for place in places for at, token in enumerate(anchor)}

    class WriteAnchors:
        def __call__(self, input_ids, scores):
            scores[:, [99, 97, end]] = -100.0
            if (token := forced.get(input_ids.shape[1])) is not None:
                scores[:] = float("-inf")
                scores[:, token] = 0
            return scores

    processor = StaticLogitsProcessor(index, anchor_token_id=anchor, eos_token_id=end)
    out = run(
        model,
        prompt().clamp(max=90),
        logits_processor=LogitsProcessorList([WriteAnchors(), processor]),
        max_new_tokens=20,
        do_sample=True,
        eos_token_id=None,
    ).sequences
    behind = [place + len(anchor) for place in places]
    for place, start in zip(places, behind, strict=True):
        assert (out[:, place:start] == torch.tensor(anchor)).all() and (out[:, start + 4] == end).all()
        assert all(members(sequences, out[:, start : start + 4]))
    ranks = [index.lookup(out[:, start : start + 4]).tolist() for start in behind]
    assert processor.items(out) == [list(pair) for pair in zip(*ranks, strict=True)] and processor.valid(out).all()
    free = out[:, [7, 8]]
    assert not set(free.flatten().tolist()) <= set(index.trie.alphabet.tolist()), "free text is not constrained"


@pytest.mark.parametrize(
    ("anchor", "is_free"),
    [
        ([5], False),
        ([90, 5], True),
        ([5, 6], False),
        ([6, 5], True),
        ([90, 90], True),
        ([7, 5], False),
    ],
)
def test_an_anchor_must_not_end_within_a_sequence(anchor, is_free):
    index = StaticIndex.build([[5, 6, 9], [7, 5, 9], [8, 8, 8]], vocab_size=VOCAB)
    if is_free:
        StaticLogitsProcessor(index, anchor_token_id=anchor)
    else:
        with pytest.raises(ValueError, match="occurs within a sequence"):
            StaticLogitsProcessor(index, anchor_token_id=anchor)


def test_an_anchor_that_overlaps_the_sequence_behind_it_is_refused():
    index = StaticIndex.build([[99, 5]], vocab_size=VOCAB)
    with pytest.raises(ValueError, match="occurs within"):
        StaticLogitsProcessor(index, anchor_token_id=[99, 99])  # 99, 99, 99: behind which of them does it start?
    StaticLogitsProcessor(index, anchor_token_id=[99, 98])


def test_items_of_an_output_come_in_one_call(model):
    sequences = [[5, 6], [5, 6], [9, 5], [7, 7]]
    index = StaticIndex.build(sequences, vocab_size=VOCAB, item_ids=["a", "b", "c", "d"])
    processor = StaticLogitsProcessor(index, prompt_length=7, eos_token_id=EOS)
    settings = dict(num_beams=5, num_return_sequences=5, do_sample=False, max_new_tokens=3)
    out = run(model, prompt(1), logits_processor=[processor], **settings)
    found = processor.items(out)
    assert sorted(map(tuple, found)) == [(), (), ("a", "b"), ("c",), ("d",)]
    rows = out.sequences[:3]
    assert processor.items(rows) == processor.items(rows.numpy()) == processor.items(rows.tolist()) == found[:3]
    assert processor.items(torch.full((1, 9), 60)) == [[]]


def test_without_an_end_token_text_goes_on_freely_behind_an_anchored_sequence():
    index, sequences = random_index(0)
    processor = StaticLogitsProcessor(index, anchor_token_id=99)
    rows = torch.tensor([[1, 99, *sequences[0]], [99, *sequences[1][:2], 99, *sequences[1][:2]]])
    scores = torch.randn(2, VOCAB)
    got = processor(rows, scores.clone())
    assert torch.equal(got[0], scores[0]) and 0 < got[1].isfinite().sum() < 40


def test_each_prompt_may_have_an_index_of_its_own(model):
    indexes = [random_index(seed)[0] for seed in (0, 1)]
    processor = StaticLogitsProcessor(indexes=indexes, index_ids=[1, 0], prompt_length=7, eos_token_id=EOS)
    got = run(model, prompt(), logits_processor=[processor], **MODES["beams"]).sequences
    for row, which in enumerate((1, 0)):
        alone = StaticLogitsProcessor(indexes[which], prompt_length=7, eos_token_id=EOS)
        expected = run(model, prompt()[[row]], logits_processor=[alone], **MODES["beams"]).sequences
        assert torch.equal(got[8 * row : 8 * row + 8], expected)
    assert processor.valid(got).all()
    with pytest.raises(ValueError, match="3 rows"):
        processor(torch.ones(3, 7, dtype=torch.int64), torch.zeros(3, VOCAB))


def test_more_beams_than_sequences_return_every_sequence_and_mark_the_rest(model):
    sequences = [[5, 6, 7], [5, 6, 8], [9, 5, 5]]
    index = StaticIndex.build(sequences, vocab_size=VOCAB)
    processor = StaticLogitsProcessor(index, prompt_length=7)
    settings = dict(num_beams=6, num_return_sequences=6, do_sample=False, max_new_tokens=3)
    out = run(model, prompt(1), logits_processor=[processor], **settings)
    real = out.sequences_scores > -1e8
    assert sorted(map(tuple, out.sequences[real][:, 7:].tolist())) == sorted(map(tuple, sequences))
    assert processor.valid(out.sequences)[real].all()


def test_a_row_off_the_index_may_only_end_and_is_counted():
    index, sequences = random_index(0)
    processor = StaticLogitsProcessor(index, prompt_length=1, eos_token_id=EOS)
    rows = torch.tensor([[1, sequences[0][0], 60], [1, *sequences[0][:2]]])
    scores = processor(rows, torch.zeros(2, VOCAB))
    assert scores[0].isfinite().nonzero().flatten().tolist() == [EOS]
    assert processor.dead_rows == 1 and not scores[1, EOS].isfinite()


def test_a_stale_prompt_length_is_an_error_and_not_a_wrong_answer(model):
    index, _ = random_index(0)
    processor = StaticLogitsProcessor(index, prompt_length=7, eos_token_id=EOS)
    for mode in ("greedy", "beams"):
        run(model, prompt(), logits_processor=[processor], **MODES[mode])
        for length in (5, 8, 9, 12, 13, 14, 40):
            with pytest.raises(ValueError, match="prompt_length=7"):
                run(model, prompt(2, length), logits_processor=[processor], **MODES[mode])
        run(model, prompt(), logits_processor=[processor], **MODES[mode])


def test_an_index_of_another_vocabulary_is_refused(model):
    index = StaticIndex.build(random_sequences(0), vocab_size=VOCAB + 1)
    with pytest.raises(ValueError, match=f"scores {VOCAB} tokens.*vocab_size={VOCAB + 1}"):
        run(model, prompt(), logits_processor=[StaticLogitsProcessor(index, prompt_length=7)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(), "prompt_length= or anchor_token_id="),
        (dict(prompt_length=3, anchor_token_id=99), "prompt_length= or anchor_token_id="),
        (dict(prompt_length=-1), "prompt_length=-1"),
        (dict(prompt_length=3), "several lengths.*eos_token_id"),
        (dict(prompt_length=3, eos_token_id=VOCAB), f"eos_token_id={VOCAB}"),
        (dict(anchor_token_id=5), r"anchor_token_id=\[5\] occurs within"),
        (dict(prompt_length=3, index_ids=[0]), "indexes= together with index_ids="),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    index = StaticIndex.build([[5, 6], [5]], vocab_size=VOCAB)
    with pytest.raises(ValueError, match=message):
        StaticLogitsProcessor(index, **settings)


def test_sequences_that_bring_their_own_end_token_come_out_whole(model):
    sequences = [[*sequence, EOS] for sequence in random_sequences(0, variable=True)]
    index = StaticIndex.build(sequences, vocab_size=VOCAB)
    processor = StaticLogitsProcessor(index, prompt_length=7, eos_token_id=EOS)
    out = run(model, prompt(), logits_processor=[processor], **MODES["beams"])
    assert processor.valid(out.sequences).all()


def test_lengths_that_differ_ask_for_an_end_token_even_if_all_end_alike():
    """9 is a full stop: nothing tells generate() that the text ends there, or goes on to another item."""
    index = StaticIndex.build([[10, 9], [10, 9, 11, 9], [12, 13, 9]], vocab_size=64)
    with pytest.raises(ValueError, match="eos_token_id= is needed"):
        StaticLogitsProcessor(index, prompt_length=2)


@pytest.mark.parametrize(
    "eos", [np.int64(EOS), [EOS], (EOS,), np.array([EOS]), torch.tensor(EOS), torch.tensor([EOS])]
)
def test_an_end_token_may_be_a_number_of_any_kind(model, eos):
    index, _ = random_index(0, variable=True)
    processor = StaticLogitsProcessor(index, prompt_length=np.int64(7), eos_token_id=eos)
    assert processor.end_tokens.tolist() == [EOS]
    assert processor.valid(run(model, prompt(), logits_processor=[processor], **MODES["beams"]).sequences).all()
    with pytest.raises(TypeError, match=r"eos_token_id=2\.5 is no token"):
        StaticLogitsProcessor(index, prompt_length=7, eos_token_id=2.5)


def test_an_end_token_inside_sequences_is_warned_of(monkeypatch):
    heard = []
    logger = logging.getLogger("hf_infeco.static.processor")
    monkeypatch.setattr(logger, "warning_once", lambda message: heard.append(message))
    index = StaticIndex.build([[5, 2, 7], [5, 9, 2], [8, 2, 2]], vocab_size=64)
    StaticLogitsProcessor(index, prompt_length=3, eos_token_id=2)
    assert len(heard) == 1 and heard[0].startswith("eos_token_id=2 stands inside sequences")
    StaticLogitsProcessor(StaticIndex.build([[5, 9, 2]], vocab_size=64), prompt_length=3, eos_token_id=2)
    StaticLogitsProcessor(index, prompt_length=3, eos_token_id=9)
    assert len(heard) == 2 and heard[1].startswith("eos_token_id=9")


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_that_others_block_goes_on_at_any_temperature(temperature, dtype):
    index = StaticIndex.build([[5, 6, 5, 6, 7]], vocab_size=VOCAB)
    processor = StaticLogitsProcessor(index, prompt_length=7, eos_token_id=EOS)
    settings = dict(no_repeat_ngram_size=2, do_sample=True, temperature=temperature, max_new_tokens=5)
    out = run(tiny_model().to(dtype), prompt(), logits_processor=[processor], **settings)
    assert out.sequences[:, 7:].tolist() == 2 * [[5, 6, 5, 6, 7]]


def tiny_bart(**forced):
    torch.manual_seed(0)
    sizes = dict(d_model=32, encoder_ffn_dim=64, decoder_ffn_dim=64, encoder_layers=1, decoder_layers=1)
    heads = dict(encoder_attention_heads=2, decoder_attention_heads=2)
    special = dict(bos_token_id=1, pad_token_id=PAD, eos_token_id=EOS, decoder_start_token_id=EOS)
    model = BartForConditionalGeneration(BartConfig(vocab_size=VOCAB, **sizes, **heads, **special)).eval()
    model.generation_config.update(**forced)
    return model


@pytest.mark.parametrize("forced", [dict(forced_eos_token_id=EOS), dict(forced_bos_token_id=1)], ids=str)
def test_tokens_that_bart_forces_are_an_error_where_they_leave_no_sequence(forced):
    index, _ = random_index(0)
    plain = StaticLogitsProcessor(index, prompt_length=1, eos_token_id=EOS)
    expected = run(tiny_bart(forced_eos_token_id=None), prompt(), logits_processor=[plain], **MODES["beams"])
    processor = StaticLogitsProcessor(index, prompt_length=1, eos_token_id=EOS)
    settings = {**MODES["beams"], "logits_processor": [processor]}
    with pytest.raises(ValueError, match=r"forced_bos_token_id.*leaves no other"):
        run(tiny_bart(**forced), prompt(), max_new_tokens=index.length, **settings)
    right = dict(forced_bos_token_id=None, max_new_tokens=index.length + 1)
    got = run(tiny_bart(**forced), prompt(), **right, **settings)
    assert processor.valid(got).all()
    ranks = [index.lookup(out.sequences[:, 1:]).view(2, -1).sort().values for out in (got, expected)]
    assert torch.equal(*ranks)  # the forced end has another score


def test_logits_are_left_as_they_were_where_that_is_asked_for(model):
    index, _ = random_index(0)
    untouched = run(model, prompt(), max_new_tokens=1, do_sample=False, output_logits=True).logits[0]
    for in_place in (False, True):
        processor = StaticLogitsProcessor(index, prompt_length=7, in_place=in_place)
        settings = dict(logits_processor=[processor], max_new_tokens=1, do_sample=False, output_logits=True)
        assert torch.equal(run(model, prompt(), **settings).logits[0], untouched) == (not in_place)


def test_a_generation_config_that_forbids_every_legal_token_is_warned_of(model, monkeypatch):
    index = StaticIndex.build([[5, 5, 5, 5]], vocab_size=VOCAB)
    heard = []
    monkeypatch.setattr(
        logging.getLogger("hf_infeco.static.processor"), "warning", lambda message: heard.append(message)
    )
    processor = StaticLogitsProcessor(index, prompt_length=7)
    out = run(model, prompt(), logits_processor=[processor], max_new_tokens=4, do_sample=False, no_repeat_ngram_size=2)
    assert processor.valid(out.sequences).all()
    assert len(heard) == 1 and "no_repeat_ngram_size" in heard[0]


def test_every_one_of_many_beams_is_a_member(model):
    """100 random catalogues, fixed and of several lengths, skewed, with repetitions, through beams and sampling."""
    checked = 0
    for seed in range(100):
        index, sequences = random_index(seed, variable=bool(seed % 2), length=2 + seed % 4)
        processor = StaticLogitsProcessor(index, prompt_length=3, eos_token_id=EOS)
        how = dict(do_sample=True) if seed % 10 == 0 else dict(num_beams=20, length_penalty=0.0, do_sample=False)
        ids = torch.randint(40, VOCAB, (2, 3), generator=torch.Generator().manual_seed(seed))
        out = run(model, ids, logits_processor=[processor], num_return_sequences=20, **how)
        scores = getattr(out, "sequences_scores", torch.zeros(40))
        real = scores > -1e8
        assert all(members(sequences, out.sequences[real, 3:])) and processor.valid(out.sequences[real]).all()
        checked += int(real.sum())
    assert checked > 3500
