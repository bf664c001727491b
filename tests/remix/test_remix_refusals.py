"""What cannot be done says so in a sentence; nothing loops; transformers' own call works."""

import random

import pytest
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, TextStreamer

from hf_infeco.remix import Adapter, RemixConfig, generate, remix_generate
from tests.remix.models import MASK, VOCABULARY, prompts, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
CONFIG = RemixConfig(max_new_tokens=8, block_length=4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_new_tokens": 100, "block_length": 64}, "does not divide max_new_tokens=100: use block_length=50, say"),
        ({"strategy": "best"}, "strategy='best' is none of"),
        ({"beta": 1.5}, "beta=1.5 must be between 0 and 1"),
        ({"tau_rej": -0.1}, "tau_rej=-0.1 must be 0 or more"),
        ({"top_k": 0}, "top_k=0 must be at least 1"),
        ({"tau_conf": "high"}, "tau_conf='high' is a str"),
    ],
)
def test_a_wrong_setting_is_named_with_its_limit(values, message):
    with pytest.raises(ValueError, match=message):
        RemixConfig(**values)


def test_settings_survive_json():
    config = RemixConfig(max_new_tokens=64, block_length=32, seed=3, sticky_reject=True)
    assert RemixConfig.from_dict(config.to_dict()) == config


def test_a_causal_model_is_refused():
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **SHAPE))
    model.config.mask_token_id = MASK
    with pytest.raises(ValueError, match="LlamaForCausalLM is a causal language model"):
        generate(model, prompts(1, 4), CONFIG)


def test_a_model_without_a_mask_token_is_refused():
    model = tiny_model(mask_token_id=None)
    with pytest.raises(ValueError, match="config names no mask_token_id"):
        generate(model, prompts(1, 4), CONFIG)


def test_a_causal_model_trained_to_fill_in_masks_is_taken_with_an_adapter():
    """Dream began as one; somebody else's may still be called so."""
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **SHAPE)).eval()
    model.config.mask_token_id = MASK
    output = generate(model, prompts(1, 4), CONFIG, adapter=Adapter(shifted=True))
    assert not (output.sequences == MASK).any()


@pytest.mark.skipif(not hasattr(transformers, "DiffusionGemmaForBlockDiffusion"), reason="not in this transformers")
def test_diffusion_gemma_is_sent_to_its_own_sampler():
    with torch.device("meta"):
        experts = dict(num_experts=2, top_k_experts=1, moe_intermediate_size=8)
        config = transformers.DiffusionGemmaConfig(text_config=dict(num_hidden_layers=1, **experts))
        model = transformers.DiffusionGemmaForBlockDiffusion(config)
    with pytest.raises(ValueError, match="has no mask token, so nothing can be mixed with one: use its own"):
        generate(model, prompts(1, 4), CONFIG)


def test_a_block_causal_model_wants_its_own_block_length():
    with pytest.raises(ValueError, match="attends in blocks of 8: use block_length=8, not 4"):
        generate(tiny_model(block_length=8), prompts(1, 4), CONFIG)


def test_padding_on_the_right_is_refused():
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    with pytest.raises(ValueError, match=r"Rows \[1\] of attention_mask have padding on the right"):
        generate(tiny_model(), prompts(2, 4), CONFIG, attention_mask=mask)


def test_padding_is_refused_where_the_model_looks_at_no_mask():
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    with pytest.raises(ValueError, match="looks at no attention mask, so a padded batch would be wrong"):
        generate(tiny_model(), prompts(2, 4), CONFIG, attention_mask=mask, adapter=Adapter(takes_masks=False))


def test_a_cache_is_refused_where_the_model_takes_none():
    config = RemixConfig(max_new_tokens=8, block_length=4, reuse_cache=True)
    with pytest.raises(ValueError, match="takes no cache of finished tokens"):
        generate(tiny_model(), prompts(1, 4), config, adapter=Adapter())


@pytest.mark.parametrize(
    ("allowed", "message"),
    [
        (torch.ones(7, VOCABULARY, dtype=torch.bool), r"pass bool \[8, V\]"),
        (torch.ones(8, VOCABULARY - 1, dtype=torch.bool), "allowed_tokens is for 39 tokens, the model scores 40"),
        (torch.arange(VOCABULARY).expand(8, -1) == MASK, "leaves no token but the mask at row and position"),
    ],
)
def test_constraints_that_cannot_be_met_are_refused(allowed, message):
    with pytest.raises(ValueError, match=message):
        generate(tiny_model(), prompts(1, 4), CONFIG, allowed_tokens=allowed)


def test_random_settings_never_loop():
    """Ten thousand answers: each ends after at most as many forwards as it has tokens, whatever the settings."""
    choose = random.Random(0)
    models = {length: tiny_model(num_hidden_layers=1, block_length=length).float() for length in (None, 1, 2, 3, 4)}
    done = 0
    while done < 10_000:
        block_causal = choose.choice(list(models))
        block = block_causal or choose.randint(1, 4)
        config = RemixConfig(
            max_new_tokens=block * choose.randint(1, 3),
            block_length=block,
            strategy=choose.choice(["one", "top_k", "confidence", "remix", "remix"]),
            tau_conf=choose.choice([0.0, choose.random(), 1.0]),
            tau_rej=choose.choice([0.0, choose.random(), 9.0]),
            beta=choose.choice([0.0, choose.random(), 1.0]),
            top_k=choose.randint(1, 9),
            sticky_reject=choose.random() < 0.5,
            temperature=choose.choice([0.0, 3 * choose.random()]),
            seed=choose.randint(0, 99),
            reuse_cache=choose.random() < 0.3,
        )
        ids = prompts(100, choose.randint(1, 6), seed=done)
        mask = torch.ones_like(ids)
        mask[50:, : choose.randint(0, ids.shape[1] - 1)] = 0
        output = generate(models[block_causal], ids, config, attention_mask=mask)
        assert not (output.sequences[:, ids.shape[1] :] == MASK).any()
        assert config.reuse_cache or output.forwards.max() <= config.max_new_tokens
        done += len(ids)


def test_transformers_generate_takes_it_as_its_own():
    model = tiny_model()
    ids, mask = prompts(2, 6), torch.ones(2, 6, dtype=torch.long)
    expected = generate(model, ids, CONFIG, attention_mask=mask)
    how = dict(attention_mask=mask, custom_generate=remix_generate, remix=CONFIG, max_new_tokens=8)
    assert torch.equal(model.generate(ids, **how), expected.sequences)
    whole = model.generate(ids, return_dict_in_generate=True, return_states=True, **how)
    assert torch.equal(whole.forwards, expected.forwards) and len(whole.steps) == expected.forwards.max()


def test_transformers_generate_alone_is_refused():
    with pytest.raises(ValueError, match="does not decode from left to right"):
        tiny_model().generate(prompts(1, 4), max_new_tokens=4)


def test_processors_of_text_from_left_to_right_are_refused():
    with pytest.raises(ValueError, match="'RepetitionPenaltyLogitsProcessor'"):
        tiny_model().generate(
            prompts(1, 4), repetition_penalty=1.3, custom_generate=remix_generate, remix=CONFIG, max_new_tokens=8
        )


class Listening(TextStreamer):
    """Keeps what it is given, drafts too."""

    def __init__(self):
        self.got, self.drafts, self.ended = [], [], False

    def put(self, value):
        self.got.append(value.flatten().tolist())

    def put_draft(self, value):
        self.drafts.append(value.tolist())

    def end(self):
        self.ended = True


def test_a_streamer_gets_the_prompt_and_each_block_once_and_drafts_between():
    ids, streamer = prompts(1, 6), Listening()
    output = generate(
        tiny_model(), ids, RemixConfig(max_new_tokens=8, block_length=4, strategy="one"), streamer=streamer
    )
    answer = output.sequences[0, 6:].tolist()
    assert streamer.got == [ids[0].tolist(), answer[:4], answer[4:]] and streamer.ended
    assert [len(draft) for draft in streamer.drafts] == [8, 8, 8, 4, 4, 4]
