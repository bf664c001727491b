"""The processes of `hf-infeco serve`: the first one is the front and answers HTTP, the others follow it."""

import contextlib
import copy
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
import uvicorn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.utils import logging

from ..flying import FlyingManager
from ..flying.groups import widths_of
from .app import Limits, build_app
from .generation import SAMPLING

logger = logging.get_logger(__name__)

PAGE_SIZE, BATCH_TOKENS = 32, 512
GRACE = 30  # seconds that requests have to end once the server is told to
LOOPBACK = ("127.0.0.1", "::1", "localhost")
STOPPING = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Settings:
    """
    Attributes:
        model (`str`): folder or name on the Hub; clients call it so too.
        width (`int`, *optional*): processes that run as one from the start on; a policy decides without it.
        processes (`int`): started on this machine, unless torchrun has started them.
        host (`str`), port (`int`): where HTTP is answered; port 0 is any free one.
        cache_tokens (`int`): tokens of KV cache that each process holds at width 1.
        limits (`Limits`): on who may ask, and how much.
    """

    model: str
    width: int | None = None
    processes: int = 1
    host: str = "127.0.0.1"
    port: int = 8000
    cache_tokens: int = 8192
    limits: Limits = Limits()


def serve(settings: Settings, announce: Callable[[str], None]) -> None:
    """
    Serves until it is interrupted or terminated. Under torchrun every process calls this.

    Args:
        announce: called with the address once requests are taken.

    Raises:
        ValueError: for settings or a model that cannot be served.
        OSError: for a model that cannot be read, an address that cannot be had, or processes that do not come about.
    """
    _check(settings)
    if settings.limits.key is None and settings.host not in LOOPBACK:
        logger.warning(f"Whoever reaches {settings.host} can use this server: give it a key, such as by --api-key.")
    rank = int(os.environ.get("RANK", 0))
    handlers = {each: signal.getsignal(each) for each in STOPPING}
    try:
        with _listening(settings) if rank == 0 else contextlib.nullcontext() as listener:
            if "RANK" in os.environ:
                _join()
                _run(settings, listener, announce)
            else:
                with _followers(settings):
                    _run(settings, listener, announce)
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)


def _check(settings: Settings) -> None:
    """Before a process is started or a model is loaded in vain."""
    processes = here = settings.processes
    if "RANK" in os.environ:
        processes = int(os.environ["WORLD_SIZE"])
        here = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    if settings.width is not None and settings.width not in widths_of(processes):
        raise ValueError(
            f"width={settings.width} cannot be had with {processes} processes: use one of {widths_of(processes)}."
        )
    if torch.cuda.is_available() and here > (devices := torch.cuda.device_count()):
        raise ValueError(f"{here} processes need a GPU each, and this machine has {devices}. Start at most {devices}.")


def _listening(settings: Settings) -> socket.socket:
    """A socket with the address, before a model is loaded in vain."""
    found = socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((settings.host, settings.port))
    except OSError as error:
        raise OSError(f"{settings.host}:{settings.port} cannot be had: {error}. Choose another port.") from error
    return found


@contextlib.contextmanager
def _followers(settings: Settings) -> Iterator[None]:
    """Starts the other processes and joins them; at the end none is left."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # while a model is loaded, so that none is left then either
    context = torch.multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        started = [
            context.Process(target=_follow, args=(settings, rank, store), daemon=True)
            for rank in range(1, settings.processes)
        ]
        try:
            for process in started:
                process.start()
            _join(0, settings.processes, store)
            yield
        finally:
            for process in started:
                process.join(5)
                process.kill()


def _follow(settings: Settings, rank: int, store: str) -> None:
    _join(rank, settings.processes, store)
    _run(settings)


def _join(rank: int = 0, size: int = 1, store: str | None = None) -> None:
    """Makes this process one of a group: by a file on this machine, or by torchrun's variables."""
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if store is not None:
        os.environ["LOCAL_RANK"] = str(rank)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # of collectives and of what names no device
    if store is None:
        dist.init_process_group(backend)
        return
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # nobody else may take part
    torch.set_num_threads(max(1, torch.get_num_threads() // size))
    dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=size)


def _run(settings: Settings, listener: Any = None, announce: Callable[[str], None] = lambda address: None) -> None:
    if dist.get_rank() > 0:
        for each in STOPPING:  # a terminal, or torchrun, tells everybody; these stop when the front has answered all
            signal.signal(each, signal.SIG_IGN)
    try:
        model, tokenizer = _load(settings)
        dist.barrier()  # the manager's groups wait for seconds only
        manager = _manager_of(model, settings)
        manager.start()
    except RuntimeError as error:  # of CUDA, whose memory is too small, or of another process that is gone
        raise OSError(f"{settings.model!r} cannot be started: {error}") from error
    if not manager.is_front:
        manager.wait()
        return
    try:
        if settings.width is not None:
            manager.switch(settings.width)
        app = build_app(manager, tokenizer, settings.model, settings.limits, settings.host)
        _answer(app, listener, announce)
    finally:
        manager.stop(hard_stop=True)


def _load(settings: Settings) -> tuple[PreTrainedModel, Any]:
    device = f"cuda:{os.environ['LOCAL_RANK']}" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    if not tokenizer.is_fast:
        raise ValueError(
            f"{settings.model!r} has a slow tokenizer, which cannot stream text. Convert it to a fast one."
        )
    return AutoModelForCausalLM.from_pretrained(settings.model, dtype="auto").to(device), tokenizer


def _manager_of(model: PreTrainedModel, settings: Settings) -> FlyingManager:
    generation = copy.deepcopy(model.generation_config)
    generation.update(**SAMPLING)
    pool = ContinuousBatchingConfig(
        page_size=PAGE_SIZE,
        num_blocks=-(-settings.cache_tokens // PAGE_SIZE),
        max_batch_tokens=BATCH_TOKENS,
        per_request_processors=True,
    )
    policy = "auto" if settings.width is None and dist.get_world_size() > 1 else None
    return FlyingManager(model, generation, pool, policy=policy)


def _answer(app: Any, listener: socket.socket, announce: Callable[[str], None]) -> None:
    logging.get_logger("transformers.cli.serving").setLevel(logging.ERROR)  # it warns of every request
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=GRACE
    )
    host, port = listener.getsockname()[:2]
    for each in STOPPING:  # uvicorn takes them, and afterwards raises them again for whoever was there before
        signal.signal(each, lambda *_: None)
    listener.listen()  # so that who is told may connect; uvicorn sets its own backlog later
    announce(f"http://{f'[{host}]' if ':' in host else host}:{port}")
    uvicorn.Server(config).run(sockets=[listener])
