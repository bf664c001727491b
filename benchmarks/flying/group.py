"""Processes that measure together: started for one part of the benchmark, and ended whatever happens."""

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

PROCESSES = 2
LONGEST = 3600.0  # seconds of a part


def run_group(function: Callable[..., Any], *arguments: Any) -> Any:
    """
    What `function(*arguments)` returns in the first of `PROCESSES` processes, which share the processor's cores.

    Raises:
        RuntimeError: if one of them fails or does not end in time.
    """
    context = multiprocessing.get_context("forkserver")  # imports once, whatever the number of parts
    context.set_forkserver_preload(["hf_infeco.benchmarks.flying.trace"])
    ours, theirs = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        started = [
            context.Process(target=_main, args=(theirs, rank, store, function, arguments)) for rank in range(PROCESSES)
        ]
        try:
            for process in started:
                process.start()
            theirs.close()  # so that the end of the last process ends the pipe
            if not ours.poll(LONGEST):
                raise RuntimeError(f"{function.__name__} did not end within {LONGEST} seconds.")
            try:
                failure, result = ours.recv()
            except EOFError:
                raise RuntimeError(f"The processes of {function.__name__} ended without a word.") from None
        finally:
            for process in started:
                process.join(5)
                process.kill()
    if failure:
        raise RuntimeError(failure)
    return result


def _main(pipe: Any, rank: int, store: str, function: Callable[..., Any], arguments: tuple) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // PROCESSES))
    limit = timedelta(seconds=60)
    try:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=PROCESSES, timeout=limit)
        result = function(*arguments)
        if rank == 0:
            pipe.send((None, result))
    except BaseException:
        pipe.send((traceback.format_exc(), None))
    finally:
        os._exit(0)  # no thread of a loop may keep a process
