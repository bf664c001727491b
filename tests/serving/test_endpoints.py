"""The endpoints in this process, without a model that computes: who is let in, and what a request may ask."""

import json

import pytest

pytest.importorskip("openai", reason="the extra [serve] is not installed")

from hf_infeco.serving import app as endpoints

from .canned import Canned, app_of, ask

CHAT = {"messages": [{"role": "user", "content": "w1"}], "max_tokens": 2}


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "", "localhost.evil.example", "[::1"])
def test_without_a_key_a_name_that_is_not_this_machines_is_refused(host):
    status, text = ask(app_of(Canned([1])), "/status", host=host)
    assert status == 403 and "Call this server by its address or by localhost" in text


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST", "192.168.1.2"])
def test_without_a_key_addresses_and_localhost_are_let_in(host):
    assert ask(app_of(Canned([1])), "/status", host=host)[0] == 200


def test_the_name_that_a_server_was_bound_to_is_let_in():
    manager = Canned([1])
    app = endpoints.build_app(manager, None, "canned", endpoints.Limits(), "Machine.example")
    assert ask(app, "/status", host="machine.example:80")[0] == 200


def test_with_a_key_the_name_does_not_matter():
    assert ask(app_of(Canned([1]), key="a key"), "/status", host="any.example")[0] == 401


def test_a_body_that_does_not_arrive_gives_its_place_back(monkeypatch):
    monkeypatch.setattr(endpoints, "BODY_SECONDS", 0.05)
    app = app_of(Canned([1]), max_requests=1)
    status, text = ask(app, "/v1/completions", pieces=[b'{"prompt": '])
    assert status == 408 and "did not arrive within 0.05 seconds" in text
    assert ask(app, "/v1/completions", {"prompt": "w1", "max_tokens": 1})[0] == 200


def test_settings_of_a_template_that_are_null_are_none():
    status, text = ask(app_of(Canned([5, 6])), "/v1/chat/completions", CHAT | {"chat_template_kwargs": None})
    assert status == 200 and json.loads(text)["choices"][0]["message"]["content"] == "w5 w6"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"chat_template_kwargs": {"conversations": []}}, "must not set ['conversations']"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls=False is not supported"),
        ({"parallel_tool_calls": "no"}, "must be a JSON boolean"),
    ],
)
def test_what_a_chat_may_not_ask_is_refused(fields, told):
    status, text = ask(app_of(Canned([1])), "/v1/chat/completions", CHAT | fields)
    assert status == 400 and told in json.loads(text)["error"]["message"]


def test_parallel_tool_calls_may_be_asked_for():
    assert ask(app_of(Canned([1])), "/v1/chat/completions", CHAT | {"parallel_tool_calls": True})[0] == 200


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, dict(temperature=1.0, top_k=1, top_p=1.0)),
        ({"top_p": 0.5}, dict(temperature=1.0, top_k=1 << 30, top_p=0.5)),
        ({"top_p": 0.5, "temperature": 0}, dict(temperature=1.0, top_k=1, top_p=1.0)),
    ],
)
def test_a_top_p_is_heard_where_the_models_own_config_is_greedy(fields, expected):
    manager = Canned([1, 2])
    assert ask(app_of(manager), "/v1/chat/completions", CHAT | fields)[0] == 200
    (asked,) = manager.asked
    assert {name: asked[name] for name in expected} == expected
