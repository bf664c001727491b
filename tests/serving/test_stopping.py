"""Stop strings by themselves."""

import asyncio
import contextlib

import pytest

pytest.importorskip("openai", reason="the extra [serve] is not installed")

from hf_infeco.serving.stopping import StoppingQueue, cut


def passed(pieces: list, stops: list[str]) -> tuple[list, int]:
    """What comes out of a queue for these pieces, and how often it told to stop."""
    told: list[bool] = []
    queue = StoppingQueue(stops, lambda: told.append(True))
    for piece in pieces:
        queue.put_nowait(piece)
    return [queue.get_nowait() for _ in range(queue.qsize())], len(told)


@pytest.mark.parametrize(
    ("pieces", "stops", "text"),
    [
        (["one ", "two", None], [], "one two"),
        (["one E", "N", "D two", None], ["END"], "one "),
        (["one EN", "tity", None], ["END"], "one ENtity"),
        (["one E", None], ["END"], "one E"),
        (["END", None], ["END"], ""),
        (["a;b\n", None], ["\n", ";"], "a"),
        (["aab", None], ["ab"], "a"),
        (["aa", "b", None], ["ab"], "a"),
    ],
)
def test_a_text_ends_before_the_first_stop_string_however_it_is_cut_into_pieces(pieces, stops, text):
    found, told = passed(pieces, stops)
    assert found[-1] is None and found.count(None) == 1
    assert "".join(found[:-1]) == text == cut("".join(pieces[:-1]), stops)
    assert told == any(stop in "".join(pieces[:-1]) for stop in stops)


def test_nothing_comes_after_a_stop_string():
    assert passed(["a END b", "c", None], ["END"]) == (["a ", None], 1)


def test_what_was_held_back_comes_before_what_is_no_text():
    assert passed(["a E", 3], ["END"]) == (["a ", "E", 3], 0)


def drained(queue: StoppingQueue) -> list:
    """As transformers' handlers take pieces out: wait for one, and take what else there is."""

    async def drain() -> list:
        batch = [await queue.get()]
        with contextlib.suppress(asyncio.QueueEmpty):
            while True:
                batch.append(queue.get_nowait())
        return batch

    return asyncio.run(drain())


def test_the_pieces_before_an_exception_are_not_lost_with_it():
    queue = StoppingQueue(["END"], lambda: None)
    for piece in ("one ", "two E", ValueError("an error")):
        queue.put_nowait(piece)
    assert drained(queue) == ["one ", "two ", "E"]
    with pytest.raises(ValueError, match="an error"):
        drained(queue)


def test_who_waits_already_gets_the_exception():
    async def wait_and_fail() -> None:
        queue = StoppingQueue([], lambda: None)
        asyncio.get_running_loop().call_soon(queue.put_nowait, ValueError("an error"))
        await queue.get()

    with pytest.raises(ValueError, match="an error"):
        asyncio.run(wait_and_fail())
