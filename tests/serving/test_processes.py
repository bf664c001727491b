"""How the processes of the endpoint begin and end, without any being started."""

import signal
import socket

import pytest
import torch
import torch.distributed as dist

pytest.importorskip("openai", reason="the extra [serve] is not installed")

from hf_infeco.serving import Settings, processes


@pytest.mark.parametrize(("width", "count", "widths"), [(0, 1, r"\[1\]"), (3, 2, r"\[1, 2\]"), (3, 4, r"\[1, 2, 4\]")])
def test_a_width_that_cannot_be_had_is_refused_before_anything_is_loaded(width, count, widths):
    with pytest.raises(ValueError, match=f"width={width} cannot be had with {count} processes: use one of {widths}"):
        processes.serve(Settings("no such model", width=width, processes=count, port=0), print)


def test_more_processes_than_gpus_are_refused_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="3 processes need a GPU each, and this machine has 2"):
        processes.serve(Settings("no such model", processes=3, port=0), print)


@pytest.mark.parametrize("store", ["file", None])
def test_a_process_takes_the_gpu_of_its_rank_before_it_joins_the_others(monkeypatch, store):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    calls = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(device))
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: calls.append("joined"))
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    processes._join(1, 2, store)
    assert calls == [1, "joined"]


def test_what_fails_while_a_model_is_loaded_is_told_with_its_name(monkeypatch):
    def load(settings):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(processes, "_load", load)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    with pytest.raises(OSError, match="'a model' cannot be started: CUDA out of memory"):
        processes._run(Settings("a model"))


def test_signals_are_as_before_when_serving_ends(monkeypatch):
    def interrupted(*_):
        processes._answer(None, listener, print)

    listener = socket.create_server(("127.0.0.1", 0))
    before = [signal.getsignal(each) for each in processes.STOPPING]
    monkeypatch.setattr(processes, "_join", lambda *_: None)
    monkeypatch.setattr(processes, "_run", interrupted)
    monkeypatch.setattr(processes.uvicorn.Server, "run", lambda *_, **__: None)
    with listener:
        processes.serve(Settings("a model", port=0), print)
    assert [signal.getsignal(each) for each in processes.STOPPING] == before


def test_whoever_is_told_the_address_can_connect(monkeypatch):
    def connect(address: str) -> None:
        port = int(address.rsplit(":", 1)[1])
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        told.append(address)

    told: list[str] = []
    handlers = {each: signal.getsignal(each) for each in processes.STOPPING}
    monkeypatch.setattr(processes.uvicorn.Server, "run", lambda *_, **__: None)
    with processes._listening(Settings("a model", port=0)) as listener:
        processes._answer(None, listener, connect)
    for each, handler in handlers.items():
        signal.signal(each, handler)
    assert told


def test_widths_are_those_of_the_processes_that_torchrun_has_started(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    processes._check(Settings("a model", width=2))
