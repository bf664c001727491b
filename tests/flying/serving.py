"""What the processes of the serving tests do: random schedules, and things that go wrong."""

import contextlib
import io
import logging
import runpy
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from transformers.generation.configuration_utils import ContinuousBatchingConfig

import hf_infeco
from hf_infeco.benchmarks.flying.schedules import MOVES, alone, answers, schedule
from hf_infeco.flying import FlyingManager, engine
from hf_infeco.scheduling import Decision

from .models import UNEVEN, build, prompt
from .processes import TIMEOUT, message_of

POOL = dict(page_size=16, num_blocks=40, max_batch_tokens=64)


def manager_of(model, policy=None, max_width=None, **config) -> FlyingManager:
    settings = ContinuousBatchingConfig(**{**POOL, **config})
    manager = FlyingManager(
        model, continuous_batching_config=settings, max_width=max_width, policy=policy, timeout=TIMEOUT
    )
    manager.start()
    return manager


def serve(name: str, seeds: list[int], max_width: int, **changes) -> dict:
    """Schedules on one manager; afterwards, how many blocks are still taken in this process."""
    model, reference = build(name, **changes), build(name, **changes)
    manager = manager_of(model, max_width=max_width, allow_block_sharing=name == "llama")
    hear_of_the_end_late(manager)
    runs, texts = [], {}
    with warnings_of(engine.logger) as warnings:
        if manager.is_front:
            runs = [schedule(manager, reference, seed, texts, 5 * TIMEOUT) for seed in seeds]
            time.sleep(0.3)  # the last cancels
            manager.switch(max_width)
            manager.stop()
        else:
            assert manager.wait(20 * TIMEOUT), "the front did not stop"
        time.sleep(engine.GRACE)  # whoever watches the loop may still say something
    leaked = manager.pool.num_used_blocks()
    return {"runs": runs, "leaked": leaked, "switches": manager.switches, "warnings": warnings}


def hear_of_the_end_late(manager: FlyingManager) -> None:
    """Has the word to stop come after the last step of a merged group, as it may."""
    handle = manager._links._handle

    def late(rank: int, message: tuple) -> None:
        if message[0] == "stop":
            time.sleep(engine.GRACE / 2)
        handle(rank, message)

    manager._links._handle = late


@contextlib.contextmanager
def warnings_of(logger: logging.Logger) -> Iterator[list[str]]:
    """What a logger says in the block."""
    handler, said = logging.Handler(logging.WARNING), []
    handler.emit = lambda record: said.append(record.getMessage())
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)


def serving_session() -> dict:
    return {
        "llama": serve("llama", [0, 1, 2], 4),
        "uneven": serve("llama", [3, 4], 2, **UNEVEN),
        "gemma3": serve("gemma3", [5, 6], 2),
        "phi3": serve("phi3", [7], 2),
        "refusals": refusals(),
    }


def trouble() -> dict:
    """One manager on two processes that meets what may go wrong, one after another."""
    model, reference = build("llama"), build("llama")
    manager = manager_of(model, num_blocks=8, max_requests_per_batch=1)
    if not manager.is_front:
        spoil_once(manager.pool, "write")
        break_barrier(manager, after=3)
        assert manager.wait(20 * TIMEOUT), "the front did not stop"
        return {}
    manager.costs = MOVES
    short, long = prompt(1, 20)[0].tolist(), prompt(1, 150)[0].tolist()
    found: dict = {"limits": [group_timeout(group) for group in (manager._world, manager._data)]}
    found |= {"text": alone(reference, short, 8), "long text": alone(reference, long, 8)}
    found["whole text"] = alone(reference, short, 80)
    found["too large"] = message_of(lambda: manager.add_request(prompt(1, 500)[0].tolist(), max_new_tokens=8))

    only_merged = manager.add_request(long, max_new_tokens=8)
    beside = manager.add_request(short, max_new_tokens=8)
    found["beside"] = answers(manager, {beside}, TIMEOUT)[beside][0].generated_tokens
    found["held"] = manager.status()["held"]

    running = [manager.add_request(short, max_new_tokens=80) for _ in range(4)]  # not done before the switch
    found["rolled back"] = message_of(lambda: manager.switch(2)), manager.width
    manager.switch(2)
    found["width"] = manager.width
    found["after"] = [each[0].generated_tokens for each in answers(manager, {*running}, TIMEOUT).values()]
    found["merged"] = answers(manager, {only_merged}, TIMEOUT)[only_merged][0].generated_tokens

    names = [manager.add_request(short, max_new_tokens=8) for _ in range(3)]
    urgent = manager.add_request(short, max_new_tokens=8, priority=1)
    found["order"] = list(answers(manager, {*names, urgent}, TIMEOUT)).index(urgent)
    growing = manager.add_request(long, max_new_tokens=60)
    found["no room"] = message_of(lambda: manager.switch(1))
    found["refused"] = manager.status()["refused"]
    manager.cancel_request(growing)

    manager.switch(1)
    spoil_once(manager.batch_processor.scheduler, "schedule_batch")
    (failed,) = answers(manager, {name := manager.add_request(short, max_new_tokens=8)}, TIMEOUT)[name]
    found["failed"] = str(failed.error)
    name = manager.add_request(short, max_new_tokens=8)
    found["again"] = answers(manager, {name}, TIMEOUT)[name][0].generated_tokens
    with manager.pause():  # of this process: one of two requests is its
        names = [manager.add_request(short, max_new_tokens=8, streaming=True) for _ in range(2)]
        found["parked"] = manager.status()
    for name in names:
        manager.cancel_request(name)
    found["groups"] = manager.status()["groups"]
    manager.switch(2)
    name = manager.add_request(short, max_new_tokens=8)
    found["merged again"] = answers(manager, {name}, TIMEOUT)[name][0].generated_tokens

    manager._front.is_open = False  # as a policy has it, so that the next one is held
    only_merged = manager.add_request(long, max_new_tokens=8)
    manager.switch(1)
    found["told"] = wait_until(lambda: not manager._can_merge)
    found["broken"] = message_of(lambda: manager.switch(2))
    output = manager.get_result(timeout=TIMEOUT)
    found["given up"] = output and (output.request_id == only_merged, output.error)
    manager._follow_policy(SimpleNamespace(decide=lambda snapshot: Decision(2, 2, False, "a test")))
    found["is open"] = manager._front.is_open
    manager.stop()
    found["stopped"] = message_of(lambda: manager.add_request(short))
    return found


def spoil_once(thing, name: str) -> None:
    """Has a method fail at its next call."""
    method = getattr(thing, name)

    def failing(*args, **kwargs):
        vars(thing)[name] = method
        raise OSError("spoiled by a test")

    vars(thing)[name] = failing


def break_barrier(manager: FlyingManager, after: int) -> None:
    """Has the last step of a switch fail in this process alone, after as many switches that go well."""
    barrier = dist.barrier

    def failing(**kwargs):
        barrier(**kwargs)
        if len(manager.switches) == after:
            raise RuntimeError("spoiled by a test")

    dist.barrier = failing


def wait_until(is_so: Callable[[], bool]) -> bool:
    """Whether it became so in time."""
    deadline = time.monotonic() + TIMEOUT
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.01)
    return is_so()


def group_timeout(group) -> float:
    """Seconds that a collective of a gloo group may take."""
    return group._get_backend(torch.device("cpu")).options._timeout.total_seconds()


def death(width: int) -> dict:
    """The second process ends without a word, at a width, while a request runs; what the first one does then."""
    model = build("llama")
    manager = manager_of(model)
    if not manager.is_front:
        while not manager.batch_processor.scheduler.active_requests:
            time.sleep(0.001)
        return {}  # which ends the process at once
    ids = prompt(1, 20)[0].tolist()
    text = alone(build("llama"), ids, 8)
    if width == 2:
        manager.switch(2)
    names = [manager.add_request(ids, max_new_tokens=400, streaming=True) for _ in range(2)]
    start, failed = time.monotonic(), []
    while not failed and time.monotonic() - start < 2 * TIMEOUT:
        output = manager.get_result(timeout=0.1)
        failed += [output] if output is not None and output.error else []
    took = time.monotonic() - start
    for name in names:
        manager.cancel_request(name)
    wait_until(lambda: manager.status()["groups"] == [(0,)])
    name = manager.add_request(ids, max_new_tokens=8)
    again = answers(manager, {name}, 2 * TIMEOUT)[name][0].generated_tokens
    refused = message_of(lambda: manager.switch(2))
    too_large = message_of(lambda: manager.add_request(prompt(1, 700)[0].tolist(), max_new_tokens=8))
    manager.stop()
    return {
        "errors": [each.error for each in failed],
        "took": took,
        "text": text,
        "again": again,
        "refused": refused,
        "too large": too_large,
    }


def refusals() -> dict[str, str]:
    patched = hf_infeco.patch(build("llama"))
    return {
        "patched": message_of(lambda: manager_of(patched)),
        "blocks": message_of(lambda: manager_of(build("llama"), num_blocks=None)),
    }


def example() -> str:
    """What the example prints, on two processes that are there already."""
    names = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "serve_and_switch.py"))
    manager = FlyingManager(build("llama"), continuous_batching_config=names["POOL"], timeout=TIMEOUT)
    manager.start()
    if not manager.is_front:
        manager.wait(20 * TIMEOUT)
        return ""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        names["serve"](manager, [[2, 3, 4], [5, 6]], 100)
    manager.stop()
    return printed.getvalue()
