"""A group of gloo processes for a test: started from one that has imported everything, and ended whatever happens."""

import faulthandler
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

TIMEOUT = float(os.environ.get("HF_INFECO_TEST_TIMEOUT", "10"))  # seconds of every collective; more if crowded

# Its import is what a process costs; a fork of a process that has it starts at once and has run no threads.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["tests.flying.workers"])


def message_of(call: Callable) -> str:
    """Of the error that a call raises."""
    try:
        call()
    except (ValueError, RuntimeError) as error:
        return str(error)
    return "nothing"


def run(num_processes: int, function: Callable, *args: Any, timeout: float = 90.0) -> list[Any]:
    """
    What `function(*args)` returns in each of `num_processes` processes that know one another by `torch.distributed`.

    Raises:
        AssertionError: if one of them fails or does not end in time, with its traceback. None is left behind.
    """
    timeout *= TIMEOUT / 10
    with tempfile.TemporaryDirectory() as folder:
        started = [
            _start(rank, num_processes, Path(folder) / "store", timeout, function, args)
            for rank in range(num_processes)
        ]
        try:
            return _collect(started, time.monotonic() + timeout)
        finally:
            for process, _ in started:
                process.kill()
                process.join(5)


def _start(rank: int, size: int, store: Path, timeout: float, function: Callable, args: tuple) -> tuple[Any, Any]:
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(
        target=_main, args=(theirs, rank, size, str(store), timeout, function, args), daemon=True
    )
    process.start()
    theirs.close()
    return process, ours


def _collect(started: list[tuple[Any, Any]], deadline: float) -> list[Any]:
    pending, results = {pipe: rank for rank, (_, pipe) in enumerate(started)}, {}
    while pending:
        ready = wait(list(pending), timeout=max(0.0, deadline - time.monotonic()))
        assert ready, f"processes {sorted(pending.values())} did not end in time"
        for pipe in ready:
            rank = pending.pop(pipe)
            try:
                failure, results[rank] = pipe.recv()
            except EOFError:
                failure = "it died"
            assert failure is None, f"process {rank}: {failure}"
    return [results[rank] for rank in range(len(started))]


def _main(pipe: Any, rank: int, size: int, store: str, timeout: float, function: Callable, args: tuple) -> None:
    import torch
    import torch.distributed as dist

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(timeout - 2, exit=False)
    try:
        limit = timedelta(seconds=TIMEOUT)
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=limit)
        pipe.send((None, function(*args)))
    except BaseException:
        pipe.send((traceback.format_exc(), None))
    finally:
        pipe.close()
        os._exit(0)  # a loop's thread that hangs must not keep the process
