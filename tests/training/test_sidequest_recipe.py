"""The recipe: labels by hindsight, side threads packed behind a trace, its losses, and stages that go on."""

import itertools
import json
import pkgutil
import random
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import DynamicCache, TrainingArguments

from hf_infeco import CACHE_NAME
from hf_infeco.sidequest import CursorMap, Record, SideQuestResult, ToolFormat, evict, fork, parse_command
from hf_infeco.sidequest.packed_attention import as_mask
from hf_infeco.training.sidequest import RecipeConfig, recipe
from hf_infeco.training.sidequest.evaluate import as_entry, summary
from hf_infeco.training.sidequest.labels import expired, last_uses
from hf_infeco.training.sidequest.lines import add_line, whole_lines
from hf_infeco.training.sidequest.packing import pack
from hf_infeco.training.sidequest.samples import SideSample, Trace, label
from hf_infeco.training.sidequest.tasks import named
from hf_infeco.training.sidequest.train import SIDE, SideTrainer, accumulation, active, add_side_adapter, train
from hf_infeco.training.testbed.agent.tasks import make_task

from ..sidequest.agents import model, tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")
TRIGGER = "tidy"
FORMAT = ToolFormat()


def talk(*turns):
    """A conversation in which each text but the last calls a tool."""
    messages = [{"role": "user", "content": "Go"}]
    for number, text in enumerate(turns):
        call = '{"tool": "find", "query": "x"}' if number < len(turns) - 1 else ""
        messages.append({"role": "assistant", "content": text + call})
        if call:
            messages.append({"role": "tool", "content": f"[{number}]\nfar {number}"})
    return messages


TALK = talk("a ", "see [0] ", "b ", "[0] and [2] ", "so [1]")


def trace():
    """Cursor 0 is closed from turn 3 on, though turn 3 would use it: what is hidden is a matter of the mask alone."""
    samples = [SideSample(2, [0, 1], [1], "x"), SideSample(4, [1, 2, 3], [2, 3], "yy")]
    return Trace(TALK, [3, -1, -1, -1], samples)


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

LITTLE = RecipeConfig(traces=4, epochs=2, batch=2, learning_rate=0.02, target_modules=("q_proj", "v_proj"), rank=2)


def agent_model():
    agent = model().float()
    torch.manual_seed(1)
    lora = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    return get_peft_model(agent, lora, adapter_name="agent")


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


# ---------------------------------------------------------------- stages


def few_tasks(count, seed, held_out):
    """Tasks whose solution the tiny model need not know."""
    return [Easy() for _ in range(count)]


class Easy:
    messages, tools, kind, solution = TALK[:1], [], "easy", TALK[1:]

    def is_right(self, text):
        return text == TALK[-1]["content"]


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A folder with the tiny model, which is taken to write every solution."""
    folder = tmp_path / "base"
    model().float().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    monkeypatch.setattr("hf_infeco.training.sidequest.rollouts.writes", lambda *args: True)
    monkeypatch.setattr(recipe, "plot", lambda report, path: None)
    return str(folder)


STAGED = replace(
    LITTLE,
    tasks=f"{__name__}:few_tasks",
    traces=6,
    interval=2,
    evaluation_tasks=1,
    evaluation_seeds=1,
    at_once=2,
    epochs=1,
    max_new_tokens=4,
)


def measured(*args, **kwargs):
    record = Record(peak_tokens=8, kv_reads=16)
    entries = [as_entry(Easy(), SideQuestResult("so [1]", TALK, record), FORMAT)]
    return {"keep_all": summary(entries, entries)}


def test_a_run_stopped_after_each_stage_ends_as_one_that_was_not(base, tmp_path, monkeypatch):
    """Stopped in the middle of the rollouts, before training, at its first checkpoint and before evaluation."""
    monkeypatch.setattr(recipe, "evaluate", measured)
    monkeypatch.setattr("hf_infeco.training.sidequest.train.SAVED_EVERY", 1)
    whole = recipe.run_recipe(base, STAGED, tmp_path / "whole")
    parts = tmp_path / "parts"
    for stage, stop in [("rollouts.draw_tasks", 2), ("recipe.label", 1), ("train.SideTrainer._untouched", 5)]:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_after(patch, f"hf_infeco.training.sidequest.{stage}", stop)
            recipe.run_recipe(base, STAGED, parts)
    assert any((parts / "state").glob("checkpoint-*"))
    recipe.run_recipe(base, STAGED, parts)
    for name in ("adapter_model.safetensors", "evaluation.json", "infeco_config.json"):
        assert (whole / name).read_bytes() == (parts / "adapter" / name).read_bytes(), name


def test_runs_killed_in_the_middle_of_a_line_go_on_behind_the_last_whole_one(base, tmp_path, monkeypatch):
    """With evaluation as it is, and with what a kill leaves: half a line at the end of a file."""
    folder = tmp_path / "run"
    report = (recipe.run_recipe(base, STAGED, folder) / "evaluation.json").read_bytes()
    files = [folder / "rollouts.jsonl", *sorted((folder / "evaluation").iterdir())]
    before = [path.read_bytes() for path in files]
    assert len(files) == 4
    for path, whole in zip(files, before):
        path.write_bytes(whole[: -len(whole.splitlines()[-1]) // 2])
    for made in ("traces", "adapter"):
        shutil.rmtree(folder / made)
    assert (recipe.run_recipe(base, STAGED, folder) / "evaluation.json").read_bytes() == report
    assert [path.read_bytes() for path in files] == before


def test_whole_lines_cut_off_a_torn_one(tmp_path):
    path = tmp_path / "lines.jsonl"
    assert whole_lines(path) == []
    for value in ([1], {"a": "Zürich\u2028"}):
        add_line(path, value)
    with path.open("a") as file:
        file.write('[{"kind": "2 x 2')
    assert whole_lines(path) == [[1], {"a": "Zürich\u2028"}]
    add_line(path, 3)
    assert whole_lines(path) == [[1], {"a": "Zürich\u2028"}, 3]


def test_the_card_names_the_model_and_no_folder_of_this_machine(base, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "evaluate", measured)
    out = recipe.run_recipe(base, STAGED, tmp_path / "run")
    text = (out / "README.md").read_text()
    assert "base_model: base\n" in text and str(tmp_path) not in text and "tmp" not in text
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == "base"


def test_a_base_model_is_called_as_the_agents_adapter_calls_it(tmp_path):
    agent = agent_model()
    agent.peft_config["agent"].base_model_name_or_path = "somebody/chat"
    assert recipe.base_name(agent) == "somebody/chat"
    hub = model()
    hub.name_or_path = "somebody/other"
    assert recipe.base_name(hub) == "somebody/other"


def stop_after(patch, path, calls):
    """The function at `path` is interrupted when it is called once more than `calls` times."""
    function, left = pkgutil.resolve_name(path), [calls]

    def interrupted(*args, **kwargs):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return function(*args, **kwargs)

    patch.setattr(path, interrupted)


def test_evaluation_runs_every_policy_on_the_same_tasks(base, tmp_path):
    out = recipe.run_recipe(base, STAGED, tmp_path / "run")
    report = json.loads((out / "evaluation.json").read_text())
    assert set(report) == {"keep_all", "perfect", "sidequest"}
    assert report["keep_all"]["peak_ratio"] == report["keep_all"]["reads_ratio"] == 1.0
    assert {entry["tasks"] for entry in report.values()} == {1}


def test_a_folder_with_other_settings_is_refused(base, tmp_path):
    STAGED.save_pretrained(tmp_path / "run")
    with pytest.raises(ValueError, match="a run with another traces, seed"):
        recipe.run_recipe(base, replace(STAGED, seed=1, traces=2), tmp_path / "run")


def test_a_stale_cursor_that_goes_counts_and_one_that_is_needed_counts_as_wrong():
    record = Record(deleted=[(2, 0), (4, 2)], side_texts=["x", "y"], rejected=["no"])
    entry = as_entry(Easy(), SideQuestResult("so [1]", TALK, record), FORMAT)
    assert entry["is_right"] and (entry["deletions"], entry["wrong"]) == (2, 1)
    assert (entry["commands"], entry["malformed"]) == (2, 1)


def test_config_errors_name_value_and_way_out():
    with pytest.raises(ValueError, match=r"traces=0 must be at least 1"):
        RecipeConfig(traces=0)
    with pytest.raises(ValueError, match=r"tasks='nowhere' must name an object as 'module:name'"):
        RecipeConfig(tasks="nowhere")
    with pytest.raises(ValueError, match=r"RecipeConfig.tasks='no.such:thing' cannot be imported"):
        named("no.such:thing", "tasks")
    with pytest.raises(ValueError, match=r"first_layer=9 must be below 1"):
        add_side_adapter(model(), replace(LITTLE, first_layer=9))


def test_a_config_survives_json():
    assert RecipeConfig.from_dict(json.loads(LITTLE.to_json_string())) == LITTLE
