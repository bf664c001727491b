"""The front's books by themselves: no process, no loop."""

from transformers.generation.continuous_batching.requests import RequestStatus

from hf_infeco.flying.front import Front
from hf_infeco.flying.requests import FlyingState


def state(name: str, tokens: int, priority: int = 0) -> FlyingState:
    return FlyingState(request_id=name, initial_tokens=[1] * tokens, max_new_tokens=1, priority=priority)


def test_requests_go_where_the_fewest_tokens_are_and_higher_priorities_first():
    front = Front(2)
    for each in (state("long", 50), state("short", 10), state("urgent", 30, priority=1)):
        front.add(each)
    assert [(driver, each.request_id) for driver, each in front.assign({1: 100})] == [
        (0, "urgent"),
        (1, "long"),
        (0, "short"),
    ]
    front.add(state("next", 5))
    assert [driver for driver, _ in front.assign({1: 100})] == [0]


def test_an_answer_that_was_handed_out_does_not_change_when_its_process_dies():
    front = Front(2)
    front.add(state("only", 10))
    front.assign({1: 100})
    half = state("only", 10).to_generation_output()
    half.status = RequestStatus.DECODING
    assert front.take([half]) == [half]
    (failed,) = front.dissolve(0, is_dead=True)
    assert failed.status == RequestStatus.FAILED and "Process 0" in failed.error
    assert (half.status, half.error) == (RequestStatus.DECODING, None)


def test_of_the_held_requests_only_those_that_fit_nowhere_are_given_up():
    front = Front(1)
    for each in (state("begun", 99), state("short", 49), state("long", 50)):
        front.add(each)
        front.is_open = each.request_id == "begun"
        front.assign({1: 100})
    (failed,) = front.give_up(50)
    assert (failed.request_id, failed.status) == ("long", RequestStatus.FAILED)
    assert "may have 51 tokens, and no group holds more than 50" in failed.error
    assert [len(side) for side in front.requests()] == [1, 1]
