"""A line from the front to every other process, beside the collectives: at width 1 there are none to wait for."""

import os
import secrets
import socket
import threading
from collections.abc import Callable
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

import torch.distributed as dist

FRONT = 0  # the rank that takes requests in and gives answers out


class Links:
    """
    Messages between the front and the others, in the order in which they were sent. Building it is collective.

    A message is a tuple whose first entry names what to do. Everybody's messages are handled one at a time, by one
    thread for each line.

    Args:
        group: of gloo, of all processes.
        handle: `handle(rank, message)` is called for each message of `rank`.
        lose: `lose(rank)` is called once when a line breaks.
    """

    def __init__(self, group: Any, handle: Callable[[int, tuple], None], lose: Callable[[int], None]):
        self._handle, self._lose, self._closing = handle, lose, False
        self._lines: dict[int, Connection] = {}
        self._locks: dict[int, threading.Lock] = {}
        rank, world = dist.get_rank(), dist.get_world_size()
        listener = self._listen() if rank == FRONT else None
        invitation: list[Any] = [(listener.address, self._key) if listener else None]
        dist.broadcast_object_list(invitation, FRONT, group=group)
        if listener is None:
            address, key = invitation[0]
            line = Client(tuple(address), authkey=key)
            line.send(rank)
            self._lines[FRONT] = line
        else:
            for _ in range(world - 1):
                line = listener.accept()
                self._lines[line.recv()] = line
            listener.close()
        self._locks = {each: threading.Lock() for each in self._lines}

    def _listen(self) -> Listener:
        self._key = secrets.token_bytes(32)  # pickles come over these lines: nobody else may send any
        alone = dist.get_world_size() == 1
        host = "127.0.0.1" if alone or _is_local() else socket.gethostname()
        return Listener((host, 0), backlog=dist.get_world_size(), authkey=self._key)

    def start(self) -> None:
        """Begins to hand on messages."""
        for rank in self._lines:
            threading.Thread(target=self._receive, args=(rank,), name=f"flying-link-{rank}", daemon=True).start()

    @property
    def ranks(self) -> list[int]:
        """The others to which there is a line."""
        return sorted(self._lines)

    def send(self, rank: int, *message: Any) -> None:
        """To one process; nothing happens where the line is broken, which `lose` has told."""
        line = self._lines.get(rank)
        if line is None:
            return
        try:
            with self._locks[rank]:
                line.send(message)
        except OSError:
            self._break(rank)

    def close(self) -> None:
        self._closing = True
        for line in list(self._lines.values()):
            line.close()

    def _receive(self, rank: int) -> None:
        line = self._lines[rank]
        try:
            while True:
                self._handle(rank, line.recv())
        except (EOFError, OSError, TypeError):  # TypeError: closed by us while it was being read
            self._break(rank)

    def _break(self, rank: int) -> None:
        if self._lines.pop(rank, None) is not None and not self._closing:
            self._lose(rank)


def _is_local() -> bool:
    """Whether all processes run on this machine, as torchrun and accelerate tell."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size())) == dist.get_world_size()
