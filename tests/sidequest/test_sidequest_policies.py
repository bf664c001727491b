"""What SideQuest is compared with, behind the same interface."""

from dataclasses import dataclass

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from hf_infeco.sidequest import H2O, RKV, CursorMap, KeepAll, Labels, OldestOutputs, SinkWindow, SnapKV
from hf_infeco.sidequest.observing import attention_received

from .agents import QUESTION, call, model, session, tokenizer

TURNS = [call("a", "First. "), call("b"), call("c", "Then [1]. "), call("d"), None]
OVER_TOKENS = [SinkWindow, H2O, SnapKV, RKV]


@pytest.mark.parametrize("policy", OVER_TOKENS)
def test_a_policy_over_tokens_comes_down_to_its_budget_at_every_boundary(policy):
    whole = session(TURNS, policy=KeepAll(), agent=model(layers=2)).run(QUESTION)
    spans = CursorMap.from_messages(tokenizer(), whole.messages).spans.values()
    whole, longest = whole.record, max(end - begin for begin, end in spans)
    record = session(TURNS, policy=policy(60), agent=model(layers=2)).run(QUESTION).record
    assert 60 < record.peak_tokens < 60 + 1.5 * longest < whole.peak_tokens
    assert record.kv_reads < whole.kv_reads and record.peak_nbytes < whole.peak_nbytes


@pytest.mark.parametrize("policy", OVER_TOKENS)
def test_a_policy_over_tokens_with_room_for_all_changes_nothing(policy):
    alone = session(TURNS, policy=KeepAll(), length=20).run(QUESTION)
    assert session(TURNS, policy=policy(10**4), length=20).run(QUESTION).messages == alone.messages


@pytest.mark.parametrize("policy", [H2O, SnapKV, RKV])
def test_the_model_is_as_before_once_nobody_watches(policy):
    agent = model(layers=2)
    session(TURNS, policy=policy(100), agent=agent).run(QUESTION)
    assert agent.config._attn_implementation == "sdpa"
    assert not [name for module in agent.modules() for name in vars(module) if "infeco" in name]


def test_what_attention_gives_each_key_is_that_of_its_weights():
    torch.manual_seed(0)
    query, key = torch.randn(3, 300, 8), torch.randn(3, 320, 8)
    hidden = torch.ones(300, 320, dtype=torch.bool).triu(21)
    weights = (query @ key.transpose(1, 2) * 0.3).masked_fill(hidden, -torch.inf).softmax(-1)
    torch.testing.assert_close(attention_received(query, key, 0.3), weights.mean(0).sum(0))


def test_heavy_hitters_are_those_that_all_queries_looked_at_even_after_some_were_dropped():
    """The running sums of a layer equal what one pass over all tokens gives, while nothing is dropped."""
    policy = H2O(4)
    torch.manual_seed(0)
    query, key = torch.randn(2, 9, 8), torch.randn(2, 9, 8)
    policy.watch(0, query[:, :6], key[:, :6], 1.0)
    policy.watch(0, query[:, 6:], key, 1.0)
    torch.testing.assert_close(policy.received[0], attention_received(query, key, 1.0))
    kept = policy._kept(0, key[:1])
    assert kept.sum() == 4 and kept[-2:].all()
    policy.watch(0, query[:, -1:], key[:, -5:], 1.0)
    assert len(policy.received[0]) == 5


@pytest.mark.parametrize("policy", [H2O, SnapKV, RKV])
def test_sliding_windows_are_not_watched_and_left_alone(policy):
    """Their keys move on as tokens come, and do not add up with those of earlier forwards."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, head_dim=8)
    others = dict(vocab_size=len(tokenizer()), num_key_value_heads=2, eos_token_id=None)
    kinds = ["sliding_attention", "full_attention"]
    config = Gemma3TextConfig(**sizes, **others, sliding_window=16, layer_types=kinds)
    agent = Gemma3ForCausalLM(config).eval()
    watched = []
    alone = session(TURNS, policy=KeepAll(), agent=agent, synchronous=True).run(QUESTION).record

    @dataclass
    class Counted(policy):
        def watch(self, layer, *args):
            watched.append(layer)
            super().watch(layer, *args)

    record = session(TURNS, policy=Counted(60), agent=agent).run(QUESTION).record
    assert set(watched) == {1} and 60 < record.peak_tokens < alone.peak_tokens


def test_a_window_keeps_the_first_tokens_and_the_newest():
    kept = SinkWindow(6, sinks=2)._kept(0, torch.randn(1, 10, 8))
    assert kept.nonzero().flatten().tolist() == [0, 1, 6, 7, 8, 9]


def test_snapkv_keeps_what_the_last_queries_look_at_and_around_it():
    policy = SnapKV(7, window=2, kernel=3)
    key = torch.zeros(1, 20, 4)
    key[0, 5] = 10.0
    policy.watch(0, torch.ones(1, 20, 4), key, 1.0)
    kept = policy._kept(0, key).nonzero().flatten().tolist()
    assert {4, 5, 6, 18, 19} <= set(kept) and len(kept) == 7


def test_rkv_drops_the_older_ones_of_keys_that_repeat_each_other():
    torch.manual_seed(0)
    policy = RKV(16, window=2)
    key = torch.randn(1, 20, 64)
    key[0, 3:9] = key[0, 3]
    policy.watch(0, torch.zeros(1, 20, 64), key, 1.0)
    kept = set(policy._kept(0, key).nonzero().flatten().tolist())
    assert len(kept & set(range(3, 8))) <= 2 and 8 in kept


@pytest.mark.parametrize(("synchronous", "turn"), [(False, 3), (True, 2)])
def test_labels_are_asked_when_side_threads_are_forked_and_obeyed_when_these_are(synchronous, turn):
    asked = []
    policy = Labels(lambda turn: asked.append(turn) or [0])
    record = session(TURNS, policy=policy, synchronous=synchronous).run(QUESTION).record
    assert asked == [2, 4] and record.deleted == [(turn, 0)] and not record.side_texts


def test_the_oldest_outputs_go_until_the_context_fits():
    spans = CursorMap.from_messages(tokenizer(), session(TURNS, policy=KeepAll()).run(QUESTION).messages).spans
    record = session(TURNS, policy=OldestOutputs(spans[2][1])).run(QUESTION).record
    assert record.deleted == [(4, 0), (4, 1)]
    tight = session(TURNS, policy=OldestOutputs(1, newest=2)).run(QUESTION).record
    assert tight.deleted == [(3, 0), (4, 1)]
