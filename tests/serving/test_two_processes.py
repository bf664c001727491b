"""The endpoint on two processes: the width changes in the middle of streams, and the server ends after its answers."""

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

openai = pytest.importorskip("openai", reason="the extra [serve] is not installed")

from . import server as servers  # noqa: E402

PROMPTS = ["w1 w2 w3", "w4 w5 w6 w7"]
TOKENS = 300


def outcome(stream) -> str:
    """The rest of a text, or what its error says."""
    try:
        return "".join(chunk.choices[0].text for chunk in stream)
    except openai.APIError as error:
        return error.message


def use_of_streams(server, folder) -> bool:
    """Whether the share of the cache that each process uses rises with a request and falls to 0 again."""

    def uses() -> list[float]:
        return list(server.status()["kv_use"].values())

    fields = dict(model=str(folder), max_tokens=4000, stream=True, temperature=0)
    going = [server.client.completions.create(prompt=prompt, **fields) for prompt in PROMPTS]
    rose = servers.until(lambda: len(uses()) == 2 and min(uses()) > 0)
    for stream in going:
        stream.close()
    return rose and servers.until(lambda: uses() == [0, 0])


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> dict:
    """Everything in turn, since starting the processes is what costs."""
    folder = tmp_path_factory.mktemp("model")
    servers.save_model(folder)
    with servers.served(folder, "--processes", 2, "--width", 1) as server, ThreadPoolExecutor(2) as pool:

        def streams() -> list:
            fields = dict(model=str(folder), max_tokens=TOKENS, stream=True, temperature=0)
            found = [server.client.completions.create(prompt=prompt, **fields) for prompt in PROMPTS]
            for stream in found:
                next(iter(stream))
            return found

        def texts(found: list) -> list[str]:
            return list(pool.map(outcome, found))

        found: dict = {"unswitched": texts(streams())}
        going = streams()
        found["before"] = server.status()
        found["switches"] = [server.ask("/switch", {"width": width}) for width in (2, 1, 2)]
        found["during"] = server.status()
        server.ask("/switch", {"width": 1})  # merged, tiny steps are slower
        found["switched"] = texts(going)
        found["use"] = use_of_streams(server, folder)
        found["too wide"] = server.ask("/switch", {"width": 4})
        going = streams()
        (follower,) = server.followers()
        os.kill(follower, signal.SIGKILL)
        found["after a death"] = [outcome(stream) for stream in going]
        found["cannot merge"] = server.ask("/switch", {"width": 2})
        found["alone"] = server.status()
        found["health"] = server.ask("/health")
        going = streams()
        ending = pool.submit(server.stop)
        time.sleep(0.1)
        found["at the end"] = texts(going)
        found["exit status"] = ending.result()
    return found


def test_texts_with_switches_in_mid_stream_are_those_without(session):
    assert len(session["unswitched"][0].split()) > TOKENS / 2
    assert session["switched"] == session["unswitched"]


def test_the_switches_happened_while_both_processes_had_a_request(session):
    assert session["before"]["groups"] == [[0], [1]] and session["before"]["running"] == 2
    assert [code for code, _ in session["switches"]] == [200] * 3
    assert [json.loads(text)["width"] for _, text in session["switches"]] == [2, 1, 2]
    assert session["during"]["groups"] == [[0, 1]] and session["during"]["running"] == 2
    assert session["during"]["last_switch"]["requests"] == 2


def test_the_front_knows_how_full_the_cache_of_each_process_is(session):
    assert session["use"]


def test_a_width_that_there_is_not_is_refused(session):
    code, text = session["too wide"]
    assert code == 400 and "use one of [1, 2]" in text


def test_when_a_process_dies_its_request_fails_with_a_sentence_and_the_server_serves_on(session):
    went_on, failed = session["after a death"]
    assert went_on == session["unswitched"][0]
    assert failed == "The request failed: Process 1, which served this request, is gone."
    code, text = session["cannot merge"]
    assert code == 503 and "cannot change any more" in text
    assert session["before"]["refused"] == {} and session["alone"]["groups"] == [[0]]
    assert list(session["alone"]["refused"]) == ["2"] and session["alone"]["refused"]["2"] in text
    assert list(session["alone"]["kv_use"]) == ["0"]
    assert session["health"][0] == 200


def test_a_server_that_is_stopped_answers_what_it_has_and_ends_well(session):
    assert session["at the end"] == session["unswitched"] and session["exit status"] == 0
