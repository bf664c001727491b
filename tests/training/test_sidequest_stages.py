"""The stages of the recipe: runs that are stopped and go on, evaluation, the card."""

import json
import pkgutil
import shutil
from dataclasses import replace

import pytest

from hf_infeco.sidequest import Record, SideQuest, SideQuestConfig, SideQuestResult
from hf_infeco.training.sidequest import RecipeConfig, recipe
from hf_infeco.training.sidequest.evaluate import Agent, as_entry, measure, summary
from hf_infeco.training.sidequest.lines import add_line, whole_lines
from hf_infeco.training.sidequest.samples import command
from hf_infeco.training.sidequest.tasks import named
from hf_infeco.training.sidequest.train import add_side_adapter

from ..sidequest.agents import model, tokenizer
from .traces import FORMAT, LITTLE, TALK, agent_model

pytestmark = pytest.mark.usefixtures("one_thread")


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


def test_only_conversations_that_do_not_go_as_foreseen_are_run(monkeypatch):
    foreseen = [SideQuestResult(f"so [{number}]", TALK, Record(turns=number)) for number in (0, 1)]
    answers, ran, heard = iter([foreseen[0], None, foreseen[1]]), [], []

    def replay(session, messages, solution, says):
        heard.append((messages + solution == TALK, says(2, [0, 1]), says(4, [1, 2, 3])))
        return next(answers)

    def run_many(sessions, conversations):
        ran.append(conversations)
        return [SideQuestResult("no", TALK, Record(turns=7))]

    monkeypatch.setattr("hf_infeco.training.sidequest.evaluate.replay", replay)
    monkeypatch.setattr("hf_infeco.training.sidequest.evaluate.run_many", run_many)
    agent = Agent(model(), tokenizer(), FORMAT, SideQuestConfig())
    entries = measure(agent, [Easy(), Easy(), Easy()], lambda task: SideQuest(), 4, "x")
    assert [entry["turns"] for entry in entries] == [0, 7, 1] and ran == [[Easy.messages]]
    assert [entry["is_right"] for entry in entries] == [False, False, True]
    assert heard == [(True, command([0, 1], []), command([1, 2, 3], [2, 3]))] * 3


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
