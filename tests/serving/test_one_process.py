"""The endpoint on one process, over HTTP and by the official client, as most users will try it first."""

import json
import re
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from ..flying.models import build

openai = pytest.importorskip("openai", reason="the extra [serve] is not installed")

from hf_infeco.serving.app import PAGE  # noqa: E402

from . import server as servers  # noqa: E402

PROMPT = "w1 w2 w3 w4 w5"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    servers.save_model(folder)
    with servers.served(folder, "--max-requests", 2, "--cache-tokens", 4064) as found:
        yield found


@pytest.fixture(scope="module")
def words() -> list[str]:
    """What the model says greedily after the prompt, by itself."""
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    found = build("llama").generate(ids, max_new_tokens=24, min_new_tokens=24, do_sample=False)[0, 5:]
    return [f"w{index}" for index in found.tolist()]


def complete(server, **fields):
    return server.client.completions.create(**{"model": name_of(server), "prompt": PROMPT, "max_tokens": 24} | fields)


def chat(server, **fields):
    defaults = {"model": name_of(server), "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 24}
    return server.client.chat.completions.create(**defaults | fields)


def name_of(server) -> str:
    return server.client.models.list().data[0].id


def test_a_completion_is_the_greedy_text_of_the_model(server, words):
    found = complete(server)
    assert found.choices[0].text == " ".join(words) and found.choices[0].finish_reason == "length"
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (5, 24)
    for temperature in (0, 1e-30):
        assert complete(server, temperature=temperature).choices[0].text == " ".join(words)


def test_a_chat_is_the_text_after_its_template(server, words):
    assert chat(server).choices[0].message.content == " ".join(words)
    parts = [{"role": "user", "content": [{"type": "text", "text": PROMPT}]}]
    assert chat(server, messages=parts).choices[0].message.content == " ".join(words)


def test_streams_are_the_same_texts_piece_by_piece(server, words):
    pieces = [chunk.choices[0].text for chunk in complete(server, stream=True)]
    assert len(pieces) > 20 and "".join(pieces) == " ".join(words)
    *pieces, last = list(chat(server, stream=True))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == " ".join(words)
    assert last.choices[0].finish_reason == "length" and last.usage.completion_tokens == 24


def test_a_stream_ends_as_those_of_openai_do(server):
    _, text = server.ask("/v1/completions", {"prompt": PROMPT, "max_tokens": 2, "stream": True})
    assert text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("ask", [complete, chat])
def test_a_text_ends_before_a_stop_string(server, words, ask):
    stop = next(word for word in words if word not in PROMPT.split() and word != words[0])
    expected = " ".join(words).split(stop)[0]
    (choice,) = ask(server, stop=stop).choices
    assert (choice.text if ask is complete else choice.message.content) == expected
    assert choice.finish_reason == "stop"
    chunks = [chunk.choices[0] for chunk in ask(server, stop=[stop], stream=True)]
    assert "".join((each.text if ask is complete else each.delta.content) or "" for each in chunks) == expected


def test_each_request_is_sampled_as_it_asks(server, words):
    """A greedy request beside one with a temperature, twice."""
    with ThreadPoolExecutor(2) as pool:
        sampled, greedy = pool.map(lambda value: complete(server, temperature=value), [1.5, 0.0])
    assert greedy.choices[0].text == " ".join(words)
    assert len({sampled.choices[0].text, complete(server, temperature=1.5).choices[0].text, " ".join(words)}) == 3


MESSAGES = [{"role": "user", "content": "w1"}]


@pytest.mark.parametrize(
    ("path", "body", "status", "sentence"),
    [
        ("completions", b"{not json", 400, "The body is not JSON"),
        ("completions", b"[" * 100_000, 400, "The body is not JSON"),
        ("completions", [1], 400, "must be a JSON object, not list"),
        ("completions", {"prompt": ["w1", "w2"]}, 400, "prompt must be a string"),
        ("completions", {"prompt": ""}, 400, "The prompt is empty"),
        ("completions", {"prompt": "w1", "colour": "red"}, 422, "colour"),
        ("completions", {"prompt": "w1", "model": "another"}, 400, "model='another' is not served here"),
        ("completions", {"prompt": "w1", "max_tokens": -5}, 400, "max_tokens=-5 must be a whole number"),
        ("completions", {"prompt": "w1", "max_tokens": 4096}, 400, "more than the 4096 positions"),
        ("completions", {"prompt": "w1", "max_tokens": 4080}, 400, "does not fit: the KV cache holds 4064 tokens"),
        ("completions", {"prompt": "w1", "temperature": float("nan")}, 400, "temperature=nan must be a number"),
        ("completions", {"prompt": "w1", "top_p": 0}, 400, "top_p=0 must be a number"),
        ("completions", {"prompt": "w1", "stop": [""]}, 400, "none of them empty"),
        ("completions", {"prompt": "w1", "stop": ["w"] * 17}, 400, "at most 16 strings"),
        ("completions", {"prompt": "w1", "stream": "yes"}, 400, "stream='yes' must be a JSON boolean"),
        ("completions", {"prompt": "\ud800"}, 400, "surrogates not allowed"),
        ("completions", {"prompt": "w1", "n": 2}, 400, "n=2 is not supported"),
        ("completions", {"prompt": "w1", "logprobs": 0}, 400, "logprobs=0 is not supported"),
        ("completions", {"prompt": "w1", "seed": 3}, 400, "seed=3 is not supported"),
        ("chat/completions", {"messages": []}, 400, "at least one message"),
        ("chat/completions", {"messages": [{"content": "w1"}]}, 400, "messages[0] must be an object with a role"),
        ("chat/completions", {"messages": [{"role": "user", "content": 3}]}, 400, "messages[0].content must be text"),
        ("chat/completions", {"messages": MESSAGES, "seed": 3}, 400, "seed=3 is not supported"),
        ("chat/completions", {"messages": MESSAGES, "tools": "all"}, 400, "tools='all' must be a JSON array"),
        (
            "chat/completions",
            {"messages": MESSAGES, "chat_template_kwargs": {"chat_template": "{{ 1 }}"}},
            400,
            "chat_template_kwargs must not set ['chat_template']",
        ),
        ("chat/completions", {"messages": MESSAGES, "response_format": {"type": "json_object"}}, 400, "not supported"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(server, path, body, status, sentence):
    code, text = server.ask(f"/v1/{path}", body)
    assert code == status
    assert sentence in json.loads(text)["error"]["message"]


def test_a_request_that_names_no_number_gets_what_is_left_in_the_cache(server):
    found = complete(server, prompt=" ".join(["w7"] * 4000), max_tokens=None)
    assert found.usage.total_tokens == 4064 and found.choices[0].finish_reason == "length"


def test_what_asks_for_nothing_is_let_through(server, words):
    neutral = dict(n=1, frequency_penalty=0.0, presence_penalty=0, echo=False, logprobs=None, user="me")
    assert complete(server, **neutral).choices[0].text == " ".join(words)


def test_only_json_is_read_so_that_no_page_in_a_browser_can_send_a_form(server):
    assert server.ask("/switch", b'{"width": 1}', **{"Content-Type": "text/plain"})[0] == 415


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://another.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:1"},
    ],
)
def test_a_page_of_another_site_changes_nothing_even_with_the_key(server, headers):
    for path, body in (("/switch", {"width": 1}), ("/v1/completions", {"prompt": "w1", "max_tokens": 1})):
        code, text = server.ask(path, body, **headers)
        assert code == 403 and "A page of another site" in text


def test_the_page_of_this_server_may_switch_behind_a_proxy_too(server):
    for headers in ({"Origin": server.address}, {"Origin": "https://proxy.example", "Sec-Fetch-Site": "same-origin"}):
        assert server.ask("/switch", {"width": 1}, **headers)[0] == 200


def test_the_page_comes_without_the_key_and_takes_nothing_from_elsewhere(server):
    with urllib.request.urlopen(server.address, timeout=servers.TIMEOUT) as answer:
        page, headers = answer.read().decode(), answer.headers
    assert page == PAGE.read_text(encoding="utf-8") and headers["Content-Type"] == "text/html; charset=utf-8"
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert "//" not in page and not re.search(r"\bsrc\b|@import|url\(", page)
    assert not re.search("innerHTML|outerHTML|insertAdjacentHTML|document.write", page)
    assert server.ask("/", {}, key="wrong")[0] == 405


def test_what_the_page_reads_is_there(server):
    page = PAGE.read_text(encoding="utf-8")
    assert set(re.findall(r"\bstatus\??\.(\w+)", page)) <= set(server.status())
    assert set(re.findall(r'\bat\("(\w+)"\)', page)) <= set(re.findall(r'id="(\w+)"', page))


def test_a_body_over_the_limit_is_refused(server):
    code, text = server.ask("/v1/completions", {"prompt": "w1 " * (3 << 19)})
    assert code == 413 and "larger than 4,194,304 bytes" in text


def test_without_the_key_there_is_health_and_nothing_else(server):
    assert server.ask("/health", key="wrong") == (200, '{"status":"ok"}')
    for path in ("/v1/models", "/status", "/metrics", "/nothing"):
        assert server.ask(path, key="wrong")[0] == 401
    with pytest.raises(openai.AuthenticationError, match="The key is missing or wrong"):
        server.client.with_options(api_key="wrong").completions.create(model="any", prompt=PROMPT)


def test_the_routes_of_transformers_that_change_what_is_served_are_not_there(server):
    assert [server.ask(path, {})[0] for path in ("/reset", "/load_model")] == [404, 404]


def test_more_requests_than_the_limit_are_told_to_come_again(server, words):
    streams = [complete(server, stream=True, max_tokens=2000) for _ in range(2)]
    for stream in streams:
        next(iter(stream))
    with pytest.raises(openai.RateLimitError, match="2 requests are being answered already"):
        complete(server)
    assert server.ask("/health")[0] == 200 and server.status()["running"] == 2
    for stream in streams:
        stream.close()
    assert servers.until(lambda: server.status()["running"] == 0)
    assert complete(server).choices[0].text == " ".join(words)


def test_the_request_of_a_client_that_leaves_is_cancelled(server):
    with complete(server, stream=True, max_tokens=4000) as stream:
        next(iter(stream))
        assert server.status()["running"] == 1
    assert servers.until(lambda: server.status()["running"] == 0)
    with pytest.raises(openai.APITimeoutError):
        server.client.with_options(timeout=0.5).completions.create(model=None, prompt=PROMPT, max_tokens=4000)
    assert servers.until(lambda: server.status()["running"] == 0)
    assert 'path="/v1/completions",status="499"' in server.ask("/metrics")[1]


def test_the_status_counts_tokens_and_tells_how_full_the_cache_is(server):
    before = server.status()
    assert before["model"] == name_of(server) and before["kv_use"] == {"0": 0} and before["policy"] is None
    with complete(server, stream=True, max_tokens=4000) as stream:
        for _ in zip(range(200), stream):
            pass
        found = server.status()
    # At least 205 tokens of 4064 or a little more, which the page of 32 and the whole cache may round.
    assert 205 / 4096 < found["kv_use"]["0"] <= 1 and found["prefilling"] == 0
    assert found["generated_tokens"] >= before["generated_tokens"] + 200
    assert servers.until(lambda: server.status()["kv_use"] == {"0": 0})


def test_metrics_count_what_was_answered(server):
    def read() -> dict[str, float]:
        lines = server.ask("/metrics")[1].splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}

    before = read()
    complete(server)
    after = read()
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert grown["hf_infeco_prompt_tokens_total"] == 5 and grown["hf_infeco_generated_tokens_total"] == 24
    assert grown["hf_infeco_first_token_seconds_count"] == 1 and grown["hf_infeco_first_token_seconds_sum"] > 0
    assert grown['hf_infeco_answers_total{path="/v1/completions",status="200"}'] == 1
    assert after["hf_infeco_requests_in_progress"] == 0 and after["hf_infeco_width"] == 1
    assert after['hf_infeco_kv_use{rank="0"}'] == 0


def test_one_process_has_one_width(server):
    assert server.ask("/switch", {"width": 1})[0] == 200
    code, text = server.ask("/switch", {"width": 2})
    assert code == 400 and "use one of [1]" in text
    assert "must be a whole number" in server.ask("/switch", {"width": "two"})[1]
