"""Conversations that are foreseen: the same numbers as a run, and nothing where the model would write otherwise."""

import pytest
import torch

from hf_infeco.sidequest import H2O, CursorMap, KeepAll, SideQuestConfig, SideQuestSession, replay
from hf_infeco.sidequest.config import TRIGGER
from hf_infeco.sidequest.conversation import Conversation
from hf_infeco.sidequest.foreseen import ForeseenThreads, OtherCourse
from hf_infeco.sidequest.session import drive

from .agents import QUESTION, adapted, call, fail, find, model, session, tokenizer

TURNS = [call("a", "First. "), call("b"), call("c", "Then [1]. "), call("d"), "It is there [1]."]
COMMANDS = {2: '{"del_cursors": [0]}', 4: 'Open: 1, 2, 3.\n{"del_cursors": [2, 3]}'}
LATER = [*TURNS[:4], call("e", "w" * 50), TURNS[4]]  # the second command is obeyed as well
EXPECTED = session(LATER, policy=KeepAll()).run(QUESTION).messages


def says(turn, seen):
    return COMMANDS[turn]


def plain_session(agent, tools=(find, fail), policy=None, **settings):
    return SideQuestSession(agent, tokenizer(), tools, SideQuestConfig(interval=2, **settings), policy=policy)


def counters(record):
    return {name: value for name, value in record.to_dict().items() if name != "peak_nbytes"}


@pytest.mark.parametrize("names", [{}, {"main_adapters": ("agent",), "side_adapters": ("agent", "side")}])
@pytest.mark.parametrize("chunk", [8, 256])
def test_the_model_computes_for_a_foreseen_conversation_what_it_does_in_a_session(names, chunk, monkeypatch):
    """In one forward or in many; every row of logits that chose a token in the session is there, and no other."""
    monkeypatch.setattr("hf_infeco.sidequest.foreseen.CHUNK", chunk)
    agent = adapted() if names else model(layers=2)
    ran = session(LATER, [COMMANDS.get(turn) for turn in range(5)], agent=agent, **names)
    record = ran.run(QUESTION).record
    assert record.deleted == [(3, 0), (5, 2), (5, 3)]
    foreseen = plain_session(agent, **names)
    threads = ForeseenThreads(foreseen, CursorMap.from_messages(tokenizer(), EXPECTED), says)
    conversation = Conversation(foreseen, threads, QUESTION, on_event=threads.hear)
    drive(threads, [conversation])
    computed = torch.cat([logits for _, logits in threads.computed()])
    threads.finish()
    chosen = torch.stack(list(ran.logits_processor[0].scores.values()))
    assert len(chosen) == len(computed)
    apart = torch.cdist(chosen.double(), computed, compute_mode="donot_use_mm_for_euclid_dist")
    assert apart.min(1).values.max() < 1e-3
    assert counters(conversation.record) == counters(record)


def knowing(**changed):
    """A model that knows by heart what to write, by a token and its position; `main` or `side` says something else."""
    agent, cursors, after = model(), CursorMap.from_messages(tokenizer(), EXPECTED), {}
    rows = [(0, cursors.ids, [place for begin, end in cursors.turns for place in range(begin, end + 1)])]
    for turn, text in COMMANDS.items():
        prompt = cursors.chat.trigger(TRIGGER)
        row = [*prompt, *cursors.chat.said(text), tokenizer().eos_token_id]
        rows.append((cursors.boundaries[turn], row, range(len(prompt), len(row))))
    for first, row, written in rows:
        after |= {(first + place - 1, row[place - 1]): row[place] for place in written}
    row, place = {"main": (0, cursors.turns[3][0]), "side": (2, rows[2][2][3])}.get(changed.get("at"), (None, None))
    if row is not None:
        first, ids, _ = rows[row]
        after[first + place - 1, ids[place - 1]] = 7

    def answer(module, args, kwargs, output):
        places = kwargs["logits_to_keep"]
        keys = zip(kwargs["position_ids"][0, places].tolist(), kwargs["input_ids"][0, places].tolist())
        told = torch.tensor([after.get(key, 0) for key in keys], dtype=torch.long)
        output.logits = torch.nn.functional.one_hot(told, len(tokenizer())).float()[None]
        return output

    agent.register_forward_hook(answer, with_kwargs=True)
    return agent


def test_a_conversation_that_goes_as_foreseen_is_told_as_if_it_had_been_run():
    agent = knowing()
    ran, told = plain_session(agent).run(QUESTION), replay(plain_session(agent), QUESTION, EXPECTED[2:], says)
    assert ran.messages == EXPECTED and ran.record.deleted == [(3, 0), (5, 2), (5, 3)]
    assert (told.messages, told.answer) == (ran.messages, ran.answer)
    assert counters(told.record) == counters(ran.record)
    kept = replay(plain_session(agent, policy=KeepAll()), QUESTION, EXPECTED[2:], says)
    assert counters(kept.record) == counters(plain_session(agent, policy=KeepAll()).run(QUESTION).record)


@pytest.mark.parametrize("at", ["main", "side"])
def test_one_other_token_of_any_thread_is_another_course(at):
    assert replay(plain_session(knowing(at=at)), QUESTION, EXPECTED[2:], says) is None


def test_a_side_thread_that_does_not_end_with_its_message_is_another_course():
    other = plain_session(knowing())
    threads = ForeseenThreads(other, CursorMap.from_messages(tokenizer(), EXPECTED), says)
    main = threads.open(())
    side = threads.fork(main, ())
    with pytest.raises(OtherCourse):
        threads.step([(side, [1])])


def test_other_results_of_tools_and_other_ways_to_decode_are_another_course():
    def find(query: str) -> str:
        """
        Looks something else up.

        Args:
            query: what to look up
        """
        return "nothing"

    agent = knowing()
    assert replay(plain_session(agent, tools=[find]), QUESTION, EXPECTED[2:], says) is None
    for other in ({"temperature": 1.0}, {"synchronous": True}, {"policy": H2O(50)}):
        assert replay(plain_session(agent, **other), QUESTION, EXPECTED[2:], says) is None
