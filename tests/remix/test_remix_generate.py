"""What `generate` promises, on tiny random models in double precision."""

import inspect

import pytest
import torch

from hf_infeco.remix import RemixConfig, generate
from tests.remix.models import MASK, VOCABULARY, fill_in_by_hand, prompts, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

ALL = ("one", "top_k", "confidence", "remix")


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def settings(**values):
    return RemixConfig(**{**dict(max_new_tokens=24, block_length=8, tau_conf=0.3), **values})


def unpadded(rows):
    """Prompts of several lengths, and the batch of them padded on the left."""
    width = max(map(len, rows))
    ids = torch.stack([torch.cat([row.new_zeros(width - len(row)), row]) for row in rows])
    mask = torch.stack([(torch.arange(width) >= width - len(row)).long() for row in rows])
    return ids, mask


@pytest.mark.parametrize("sticky", [False, True], ids=["true history", "sticky"])
@pytest.mark.parametrize("tau_rej", [0.0, 0.02, 0.3, 0.34, 0.36])
def test_remix_is_the_algorithm_done_by_hand(model, tau_rej, sticky):
    config = settings(tau_rej=tau_rej, sticky_reject=sticky, beta=1.0)
    for prompt in prompts(4, 5):
        answer, forwards = fill_in_by_hand(model, prompt, config)
        output = generate(model, prompt[None], config)
        assert torch.equal(output.sequences[0, 5:], answer) and int(output.forwards) == forwards


def test_mixing_changes_answers_and_rejecting_changes_mixing(model):
    """Or the comparison by hand would compare nothing."""
    ids = prompts(16, 5)
    ways = [dict(strategy="confidence"), dict(tau_rej=9.0), dict(tau_rej=0.02)]
    ways += [dict(tau_rej=0.02, sticky_reject=True)]
    answers = [generate(model, ids, settings(beta=1.0, **how)).sequences for how in ways]
    assert all(not torch.equal(a, b) for at, a in enumerate(answers) for b in answers[at + 1 :])


@pytest.mark.parametrize("how", [dict(beta=0.0), dict(tau_rej=0.0)])
def test_without_mixing_remix_equals_the_confidence_strategy_token_for_token(model, how):
    ids = prompts(8, 6)
    mixed, plain = generate(model, ids, settings(**how)), generate(model, ids, settings(strategy="confidence"))
    assert torch.equal(mixed.sequences, plain.sequences) and torch.equal(mixed.forwards, plain.forwards)


@pytest.mark.parametrize("block_causal", [None, 8])
@pytest.mark.parametrize("strategy", ALL)
def test_a_padded_batch_answers_as_its_prompts_do_alone(strategy, block_causal):
    model = tiny_model(block_length=block_causal)
    rows = [prompts(1, length, seed=length)[0] for length in (3, 11, 8, 5)]
    ids, mask = unpadded(rows)
    together = generate(model, ids, settings(strategy=strategy), attention_mask=mask)
    for at, row in enumerate(rows):
        alone = generate(model, row[None], settings(strategy=strategy))
        assert torch.equal(together.sequences[at, -24:], alone.sequences[0, -24:])
        assert together.forwards[at] == alone.forwards[0]


@pytest.mark.parametrize("strategy", ALL)
def test_every_forward_commits_a_position_of_each_unfinished_row_and_none_is_changed(model, strategy):
    output = generate(model, prompts(5, 4), settings(strategy=strategy), return_states=True)
    before = torch.full((5, 24), MASK)
    for number, step in enumerate(output.steps):
        is_new = (before == MASK) & (step.tokens != MASK)
        is_unfinished = number < output.forwards
        assert torch.equal(is_new.any(1), is_unfinished)
        assert (step.tokens[before != MASK] == before[before != MASK]).all()
        assert torch.equal(step.states == 2, before != MASK)
        before = step.tokens
    assert len(output.steps) == output.forwards.max()
    assert torch.equal(before, output.sequences[:, 4:]) and not (before == MASK).any()


@pytest.mark.parametrize("strategy", ALL)
def test_a_block_is_begun_when_the_one_before_is_finished(model, strategy):
    output = generate(model, prompts(5, 4), settings(strategy=strategy), return_states=True)
    for step in output.steps:
        is_decided = (step.tokens != MASK).view(5, 3, 8)
        assert (is_decided[:, :-1].all(2) >= is_decided[:, 1:].any(2)).all()


def test_mixing_begins_at_the_third_forward_and_at_the_second_of_later_blocks(model):
    output = generate(model, prompts(1, 4), settings(tau_conf=1.0, tau_rej=9.0), return_states=True)
    mixed = [bool((step.states == 1).any()) for step in output.steps]
    # A block of eight takes eight forwards.
    assert mixed == [False, False, *[True] * 6, False, *[True] * 7, False, *[True] * 7]


def test_forwards_are_those_of_the_strategy(model):
    assert generate(model, prompts(2, 4), settings(strategy="one")).forwards.tolist() == [24, 24]
    assert generate(model, prompts(2, 4), settings(strategy="top_k", top_k=3)).forwards.tolist() == [9, 9]
    least = generate(model, prompts(2, 4), settings(strategy="confidence", tau_conf=0.0)).forwards
    assert least.tolist() == [6, 6]  # five of eight, then three


def test_one_legal_token_is_what_every_position_gets(model):
    wanted = torch.randint(4, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(0))
    allowed = torch.nn.functional.one_hot(wanted, VOCABULARY).bool()
    output = generate(model, prompts(2, 4), settings(), allowed_tokens=allowed)
    assert torch.equal(output.sequences[:, 4:], wanted)
    assert output.forwards.tolist() == [6, 6]  # all of them are certain


def test_only_legal_tokens_are_chosen_in_every_order_and_at_every_temperature(model):
    allowed = torch.rand(24, VOCABULARY, generator=torch.Generator().manual_seed(0)) < 0.2
    allowed[:, MASK], allowed[:, 5] = True, True
    for how in (dict(), dict(strategy="one"), dict(temperature=2.0, seed=0)):
        answers = generate(model, prompts(6, 4), settings(**how), allowed_tokens=allowed).sequences[:, 4:]
        assert allowed.expand(6, -1, -1).gather(2, answers[..., None]).all() and not (answers == MASK).any()


def test_a_seed_repeats_what_was_sampled_and_another_does_not(model):
    first, again, other = (
        generate(model, prompts(4, 4), settings(temperature=1.0, seed=seed)).sequences for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_tokens_are_sampled_as_often_as_they_are_likely(model):
    """A single position has the distribution of one forward."""
    ids = prompts(1, 4).expand(4000, -1)
    config = RemixConfig(max_new_tokens=1, block_length=1, temperature=0.7, seed=0)
    sampled = generate(model, ids, config).sequences[:, 4].bincount(minlength=VOCABULARY) / 4000
    logits = model(torch.cat([ids[:1], torch.tensor([[MASK]])], 1)).logits[0, -1]
    logits[MASK] = float("-inf")
    assert (sampled - (logits / 0.7).softmax(0)).abs().max() < 0.03


def test_shifted_logits_are_those_of_the_position_before(model):
    """A model whose logits are shifted, with those of another moved by one position, answers as the other does."""
    shifted = tiny_model(shifted_logits=True)
    forward = model.forward

    def moved(*args, **kwargs):
        keep = kwargs.pop("logits_to_keep")
        output = forward(*args, **kwargs)
        output.logits = output.logits.roll(-1, 1)[:, -keep:]
        return output

    moved.__signature__ = inspect.signature(forward)
    shifted.forward = moved
    plain, got = (generate(one, prompts(3, 4), settings()).sequences for one in (model, shifted))
    assert torch.equal(plain, got)
