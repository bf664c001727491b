"""The agent's world and tasks, the expert, and the training of its adapter."""

import pytest
from transformers.utils import get_json_schema

from hf_infeco.sidequest import ToolFormat
from hf_infeco.training.testbed.agent import tasks
from hf_infeco.training.testbed.agent.tasks import draw_tasks, make_task
from hf_infeco.training.testbed.agent.world import CUT, World

FORMAT = ToolFormat()


def test_a_world_follows_from_its_seed_and_calls_no_two_pages_alike():
    world = World(3)
    assert world.pages == World(3).pages != World(4).pages
    assert len(world.by_address) == len(world.pages) == 42
    for title, page in world.pages.items():
        assert title not in page.relations.values() and set(page.relations.values()) <= set(world.pages)


def test_most_titles_have_near_twins():
    titles = list(World(0).pages)
    twins = [
        title for title in titles if any(set(title.split()) & set(other.split()) for other in titles if other != title)
    ]
    assert len(twins) > 0.8 * len(titles)


def test_search_shows_the_page_asked_for_among_others():
    world = World(1)
    for title, page in world.pages.items():
        hits = world.search(title).splitlines()
        assert sum(hit.startswith(page.address + ":") for hit in hits) == 1 and len(hits) >= 3


def test_a_relation_is_on_the_page_or_beyond_its_cut_where_find_shows_it():
    world, cut = World(2), 0
    for page in world.pages.values():
        text = world.open(page.address, 0)
        cut += text.endswith(CUT)
        for relation in page.relations:
            assert page.shows(relation) != text.endswith(CUT)
            shown = text if page.shows(relation) else world.find(page.address, relation, 0)
            assert f"The {page.states(relation)}." in shown
    assert 0 < cut < len(world.pages)


def test_tools_tell_what_they_take_and_refuse_a_page_that_is_not_there():
    schemas = [get_json_schema(tool)["function"] for tool in World(0).tools()]
    assert [schema["name"] for schema in schemas] == ["search", "open", "find"]
    with pytest.raises(ValueError, match="no page 'nowhere'"):
        World(0).open("nowhere", 0)


@pytest.mark.parametrize(("hops", "parts"), [(1, 1), (4, 1), (8, 1), (2, 2), (4, 3)])
def test_the_expert_is_right_by_what_the_tools_tell_alone(hops, parts):
    """Replayed through the tools: every result is what they return, every claim stands in a result that it cites."""
    for seed in range(8):
        task = make_task(seed, hops, parts)
        world = {tool.__name__: tool for tool in World(seed).tools()}
        results = []
        for said, told in zip(task.solution[:-1:2], task.solution[1::2]):
            call = FORMAT.parse_call(said["content"])
            results.append(f"[{len(results)}]\n{world[call.name](**call.arguments)}")
            assert told == {"role": "tool", "content": results[-1]}
        answer = task.solution[-1]["content"]
        assert task.is_right(answer)
        for claim in answer.partition("Answer: ")[2].split("; "):
            text, _, cursor = claim.rpartition(" ")
            assert text.partition(") ")[2] in results[int(cursor.strip("[]"))]


def test_the_end_of_an_early_chain_stands_nowhere_but_on_its_page():
    """So the answer cannot be written once that page is gone."""
    task = make_task(4, 2, 2)
    said = [message["content"] for message in task.solution[:-1] if message["role"] == "assistant"]
    assert not any(task.chains[0].last in text for text in said)


def test_an_answer_that_is_wrong_uncited_or_incomplete_is_not_right():
    task = make_task(4, 2, 2)
    right = task.solution[-1]["content"]
    first, second = right.split("; ")
    for wrong in (first, f"{second}; {first}", tasks.CITED.sub("", right), right.replace(" is ", " was ", 1), ""):
        assert not task.is_right(wrong)


def test_held_out_tasks_are_of_worlds_that_training_never_sees():
    drawn = draw_tasks(20, 0, held_out=True)
    assert all(task.world.seed >= tasks.EVALUATION_SEED for task in drawn)
    assert all(task.world.seed < tasks.EVALUATION_SEED for task in draw_tasks(20, 0, held_out=False))
    assert [task.messages for task in drawn] == [task.messages for task in draw_tasks(20, 0, held_out=True)]
