"""The recipe: labels by hindsight, side threads packed behind a trace, and its losses."""

import itertools
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import DynamicCache, TrainingArguments

from hf_infeco import CACHE_NAME
from hf_infeco.sidequest import CursorMap, evict, fork, parse_command
from hf_infeco.sidequest.packed_attention import as_mask
from hf_infeco.training.sidequest.labels import expired, last_uses
from hf_infeco.training.sidequest.packing import pack
from hf_infeco.training.sidequest.samples import Trace, label
from hf_infeco.training.sidequest.train import SIDE, SideTrainer, accumulation, active, add_side_adapter, train
from hf_infeco.training.testbed.agent.tasks import make_task

from ..sidequest.agents import model, tokenizer
from .traces import FORMAT, LITTLE, TALK, TRIGGER, agent_model, talk, trace

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_last_use_of_a_cursor_is_the_last_turn_that_refers_to_it():
    assert last_uses(TALK, FORMAT) == [3, 4, 3, -1]
    assert last_uses(talk("[0] [7] ", "x"), FORMAT) == [-1]  # not there yet when it is cited


def test_expired_is_what_neither_this_turn_nor_a_later_one_uses():
    assert [expired([3, 4, 3, -1], turn) for turn in range(5)] == [[], [], [], [], [0, 2, 3]]


@pytest.mark.parametrize("interval", [1, 2, 4])
def test_targets_delete_what_is_open_and_expired(interval):
    for seed in range(20):
        task = make_task(seed, 3, 2)
        messages = task.messages + task.solution
        used = last_uses(messages, FORMAT)
        made = label(messages, FORMAT, interval, random.Random(seed))
        assert made.samples == label(messages, FORMAT, interval, random.Random(seed)).samples
        for sample in made.samples:
            assert set(sample.stale) == set(expired(used, sample.turn)) & set(sample.open)
            assert parse_command(sample.target, sample.open) == sample.stale
        for cursor, turn in enumerate(made.closed):
            assert turn == -1 or any(s.turn + 1 == turn and cursor in s.stale for s in made.samples)
        turns = [sample.turn for sample in made.samples]
        assert all(b - a == interval for a, b in itertools.pairwise(turns))


def test_pages_that_the_answer_cites_are_never_deleted():
    task = make_task(5, 2, 3)
    messages = task.messages + task.solution
    cited = FORMAT.references(messages[-1]["content"].partition("Answer")[2])
    assert len(cited) == 3
    made = label(messages, FORMAT, 1, random.Random(0))
    assert not cited & {cursor for sample in made.samples for cursor in sample.stale}


def test_a_row_survives_datasets():
    from datasets import Dataset

    made = label(TALK, FORMAT, 2, random.Random(0))
    assert Trace.from_row(Dataset.from_list([made.to_row()])[0]) == made


def test_main_tokens_do_not_see_a_closed_cursor_and_those_that_were_there_before_do():
    packed = pack(tokenizer(), trace(), TRIGGER, FORMAT)
    cursors = CursorMap.from_messages(tokenizer(), TALK)
    begin, end = cursors.spans[0]
    closes = cursors.boundaries[3]
    assert packed.sees[end:closes, begin:end].all() and not packed.sees[closes : packed.main, begin:end].any()
    assert packed.sees.diagonal().all() and not packed.sees.triu(1)[: packed.main].any()


def test_a_side_thread_sees_what_was_open_at_its_fork_and_no_other_side_thread():
    packed = pack(tokenizer(), trace(), TRIGGER, FORMAT)
    cursors = CursorMap.from_messages(tokenizer(), TALK)
    ends = (packed.targets != -100).nonzero()[:, 0]
    first, second = int(ends[1]), int(ends[-1])  # each ends in its own end of turn: "x", end, "yy", end
    fork = cursors.boundaries[2]
    assert packed.sees[first, :fork].all() and not packed.sees[first, fork : packed.main].any()
    begin, end = cursors.spans[0]
    assert not packed.sees[second, begin:end].any() and not packed.sees[second, packed.main : first + 1].any()
    assert packed.positions[packed.main] == fork


def test_only_what_the_side_thread_says_is_a_target():
    packed = pack(tokenizer(), trace(), TRIGGER, FORMAT)
    said = packed.ids[packed.targets != -100]
    assert tokenizer().decode(said) == "x<|im_end|>yy<|im_end|>"


def test_a_packed_row_computes_what_a_cache_that_is_forked_and_evicted_does():
    """The main thread read turn by turn; cursor 0 evicted before turn 3; each side thread on a fork of the cache."""
    agent, packed = model().float(), pack(tokenizer(), trace(), TRIGGER, FORMAT)
    cursors = CursorMap.from_messages(tokenizer(), TALK)
    chat = cursors.chat
    with torch.no_grad():
        mask = as_mask(packed.sees, torch.float32)
        together = agent(packed.ids[None], position_ids=packed.positions[None], attention_mask=mask).logits[0]

    def read(begin, end, cache):
        ids, positions = packed.ids[None, begin:end], packed.positions[None, begin:end]
        with torch.no_grad():
            logits = agent(ids, position_ids=positions, **{CACHE_NAME: cache}).logits[0]
        torch.testing.assert_close(logits, together[begin:end], rtol=1e-4, atol=1e-4)

    cache, at = DynamicCache(config=agent.config), packed.main
    for turn, (begin, end) in enumerate(zip([0, *cursors.boundaries], [*cursors.boundaries, packed.main])):
        read(begin, end, cache)
        if turn == 3:
            evict(cache, [cursors.spans[0]])
        for sample in trace().samples:
            if sample.turn == turn:
                length = len(chat.trigger(TRIGGER)) + len(chat.said(sample.target)) + 1
                read(at, at + length, fork(cache))
                at += length
    assert at == len(packed.ids)


# ---------------------------------------------------------------- losses


def side_trainer(config, tmp_path):
    torch.manual_seed(2)
    made = add_side_adapter(agent_model() if config.agent_adapter else model().float(), config)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    trainer = SideTrainer(config, model=made, args=arguments)
    return trainer, made


@pytest.mark.parametrize("agent", [None, "agent"])
def test_reading_the_main_thread_from_a_cache_gives_the_loss_of_the_whole_row(agent, tmp_path):
    """Before training the side adapter does nothing, so both ways compute the same loss, and nothing drifts."""
    config = replace(LITTLE, agent_adapter=agent)
    packed = pack(tokenizer(), trace(), TRIGGER, FORMAT)
    losses = []
    for adapts in (False, True):
        trainer, made = side_trainer(replace(config, adapts_main=adapts), tmp_path)
        with active(made, (*(["agent"] if agent else []), SIDE)):
            losses.append(trainer.compute_loss(made, {"packed": packed}))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-4)


def test_distillation_holds_the_main_thread(tmp_path):
    packed = pack(tokenizer(), trace(), TRIGGER, FORMAT)
    losses = {}
    for weight in (0.0, 500.0):
        trainer, made = side_trainer(replace(LITTLE, adapts_main=True, distillation=weight), tmp_path)
        torch.manual_seed(3)
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
        with torch.no_grad():
            losses[weight] = float(trainer.compute_loss(made, {"packed": packed}))
    assert losses[500.0] > losses[0.0] + 1


def test_a_main_thread_read_in_parts_gives_the_same_loss(tmp_path, monkeypatch):
    packed = pack(tokenizer(), trace(), TRIGGER, FORMAT)
    losses = []
    for chunk in (10**6, 16):
        monkeypatch.setattr("hf_infeco.training.sidequest.train.CHUNK", chunk)
        trainer, made = side_trainer(replace(LITTLE, agent_adapter="agent"), tmp_path)
        with active(made, ("agent", SIDE)):
            losses.append(trainer.compute_loss(made, {"packed": packed}))
    assert packed.main > 2 * 16
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("processes", "each"), [(1, 4), (2, 2), (4, 1)])
def test_a_step_has_the_same_traces_on_any_number_of_processes(processes, each, tmp_path, monkeypatch):
    class Seen(Exception):
        pass

    def seen(recipe, args, **kwargs):
        raise Seen(args.gradient_accumulation_steps * args.per_device_train_batch_size)

    monkeypatch.setattr("hf_infeco.training.sidequest.train.SideTrainer", seen)
    monkeypatch.setattr(
        "hf_infeco.training.sidequest.train.PartialState", lambda: SimpleNamespace(num_processes=processes)
    )
    config = replace(LITTLE, batch=4)
    with pytest.raises(Seen, match=str(each)):
        train(add_side_adapter(model(), config), tokenizer(), [trace()], FORMAT, config, tmp_path, bf16=False)


def test_traces_that_processes_cannot_share_evenly_are_refused():
    with pytest.raises(ValueError, match=r"batch=4 traces in a step cannot be shared evenly by 3 processes"):
        accumulation(replace(LITTLE, batch=4), 3)


def test_training_changes_the_side_adapter_and_nothing_else(tmp_path):
    config = replace(LITTLE, agent_adapter="agent")
    made = add_side_adapter(agent_model(), config)
    before = {name: weight.clone() for name, weight in made.named_parameters()}
    train(made, tokenizer(), [trace()] * 2, FORMAT, config, tmp_path, bf16=False, disable_tqdm=True)
    changed = {name for name, weight in made.named_parameters() if not torch.equal(weight, before[name])}
    assert changed and all(f".{SIDE}." in name for name in changed)
