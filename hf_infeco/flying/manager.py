"""`FlyingManager`: continuous batching over several processes whose parallel width changes while requests run."""

import copy
import threading
import time
from typing import Any

import torch.distributed as dist
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching.requests import GenerationOutput
from transformers.utils import logging

from ..scheduling import Policy, Snapshot, make_policy
from .engine import Engine, require_servable
from .front import Front
from .groups import require_processes
from .links import FRONT, Links
from .requests import FlyingRouter, FlyingState, register_scheduler
from .window import Costs

logger = logging.get_logger(__name__)

POLICY_INTERVAL = 0.02  # seconds between two looks at the load
REPORT_INTERVAL = 0.5  # seconds between two reports to the front


class FlyingManager(Engine):
    """
    Every process makes one with the same arguments and calls `start()`; rank 0 is the front, which takes requests and
    gives answers, the others `wait()`. At width 1 each process serves requests of its own; at width `w` groups of `w`
    processes serve one batch in tensor parallelism. `switch` moves between them while requests run.

    Args:
        model (`PreTrainedModel`): the same in every process, not patched.
        continuous_batching_config (`ContinuousBatchingConfig`): `num_blocks` must be set, since without it each
            process would take most of the machine's memory.
        max_width (`int`, *optional*): the widest group; all processes by default.
        policy (`Policy` or `str`, *optional*): switches by itself; without one only `switch` does.
        timeout (`float`): seconds after which a process that does not answer counts as gone.

    Raises:
        ValueError: for a model that is patched or cannot be split, or a config without `num_blocks`.
        RuntimeError: if `torch.distributed` is not initialised.

    Source: arXiv 2602.22593.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        generation_config: GenerationConfig | None = None,
        continuous_batching_config: ContinuousBatchingConfig | None = None,
        *,
        max_width: int | None = None,
        policy: Policy | str | None = None,
        timeout: float = 10.0,
    ):
        require_processes()
        config = copy.deepcopy(continuous_batching_config or ContinuousBatchingConfig())
        require_servable(model, config)
        config.scheduler_type = register_scheduler()
        config.cpu_group_timeout, config.use_async_batching = timeout, False  # a pause must find nothing under way
        config.cpu_offload_space = 0.0
        generation_config = copy.deepcopy(generation_config or model.generation_config)
        if generation_config.eos_token_id is None:
            generation_config.eos_token_id = -1
        self._front = Front(dist.get_world_size())  # its lock is never held while a loop is waited for
        self._switching, self._stopped = threading.Lock(), threading.Event()
        super().__init__(model, generation_config, config, max_width or dist.get_world_size(), timeout)
        self.rank, self.is_front = dist.get_rank(), dist.get_rank() == FRONT
        self.output_router = FlyingRouter(lambda: self.is_tp_driver, self._answer)
        self.batch_processor.output_router = self.output_router
        self.policy = make_policy(policy) if isinstance(policy, str) else policy
        self._kv_use: dict[int, float] = {}  # of the others, at the front
        self._links = Links(self._world, self._handle, self._lose)

    # ------------------------------------------------------------ life

    def start(self) -> None:
        """Begins to serve. Collective: it measures what moving and computing cost, for later decisions."""
        if self.is_running():
            return
        self.costs: Costs = self.calibrate()
        super().start()
        self._links.start()
        self._spawn(self._watch, self._recovered)
        if self.is_front and self.policy is not None:
            self._spawn(self._follow_policy, self.policy)
        if not self.is_front:
            self._spawn(self._report)

    def _spawn(self, target: Any, *args: Any) -> None:
        threading.Thread(target=target, args=args, name=f"flying-{target.__name__}", daemon=True).start()

    def wait(self, timeout: float | None = None) -> bool:
        """Until the front has stopped everybody; whether it has."""
        return self._stopped.wait(timeout)

    def stop(self, block: bool = True, timeout: float | None = None, hard_stop: bool = False, **unused: Any) -> None:
        """Ends all processes' loops, after what runs unless `hard_stop`. Called by the front; others follow."""
        if self._stopped.is_set():
            return
        with self._switching:
            self._stopping.set()
            if self.is_front:
                for rank in self._links.ranks:
                    self._links.send(rank, "stop", hard_stop)
            super().stop(block=block, timeout=self.timeout if timeout is None else timeout, hard_stop=hard_stop)
            if self.width > 1:
                self.switcher.flip(1)
        self._stopped.set()
        self._links.close()

    def destroy(self) -> None:
        """Ends everything. Process groups stay, for the next manager."""
        self.stop()

    # ------------------------------------------------------------ requests, at the front

    def add_request(
        self,
        input_ids: list[int],
        request_id: str | None = None,
        max_new_tokens: int | None = None,
        streaming: bool = False,
        record_timestamps: bool = False,
        eos_token_id: int | list[int] | None = None,
        priority: int = 0,
        **logit_processor_kwargs: Any,
    ) -> str | None:
        """
        As transformers', and with a priority. Returns None in every process but the front.

        Raises:
            ValueError: for a request that fits at no width.
            RuntimeError: once the manager stops.
        """
        if not self.is_front:
            return None
        if self._stopping.is_set():
            raise RuntimeError("The manager is stopping and takes no more requests.")
        with self._front.lock:  # from the look at the room on, so that no merge becomes impossible in between
            width, most = self._roomiest()
            new = self.generation_config.max_new_tokens if max_new_tokens is None else max_new_tokens
            new = most - len(input_ids) if new is None else new
            if new <= 0 or not input_ids or len(input_ids) + new > most:
                raise ValueError(
                    f"A request of {len(input_ids)} prompt and {new} new tokens does not fit: the KV cache holds "
                    f"{most} tokens at width {width}. Shorten it, or give the cache more num_blocks."
                )
            request_id = f"req_{self._request_counter}" if request_id is None else request_id
            self._request_counter += 1
            eos = self.generation_config.eos_token_id if eos_token_id is None else eos_token_id
            state = FlyingState(
                request_id=request_id,
                initial_tokens=list(input_ids),
                record_timestamps=record_timestamps,
                max_new_tokens=new,
                eos_token_id=eos,
                streaming=streaming,
                logit_processor_kwargs=logit_processor_kwargs,
                priority=priority,
            )
            self._front.add(state)
            self._dispatch()
        return request_id

    def _roomiest(self) -> tuple[int, int]:
        """
        The width at which a request may have most tokens, of those that can still be had, and how many. The front's
        lock is held.
        """
        widths = self.switcher.widths if self._can_merge else [len(each) for each in self._front.groups.values()]
        return max(((width, self.budgets[width]) for width in widths), key=lambda each: each[1])

    def cancel_request(self, request_id: str) -> None:
        """Drops a request, wherever it is; it gets no answer any more."""
        with self._front.lock:
            driver = self._front.drop(request_id)
            if driver is not None:
                self._tell(driver, "cancel", request_id)

    def _dispatch(self) -> None:
        """
        Sends what is held and fits to groups. Once none can grow any more, what fits none of them fails. The front's
        lock is held.
        """
        for driver, state in self._front.assign(self.budgets):
            self._tell(driver, "request", state)
        if not self._can_merge:
            self.output_router.deliver_here(self._front.give_up(self._roomiest()[1]))

    def _tell(self, driver: int, *message: Any) -> None:
        """A message to who drives a group, after which its other processes wake up and do not sleep on."""
        for rank in self._front.groups.get(driver, (driver,)):
            if rank == self.rank:
                self._handle(rank, message if rank == driver else ("wake",))
            else:
                self._links.send(rank, *(message if rank == driver else ("wake",)))

    # ------------------------------------------------------------ messages

    def _handle(self, rank: int, message: tuple) -> None:
        kind, *rest = message
        if kind == "request":
            self.input_queue.put(rest[0])
        elif kind == "cancel":
            self.cancel_queue.put(rest[0])
        elif kind == "outputs":
            self._take(rest[0])
        elif kind == "kv_use":
            self._kv_use[rank] = rest[0]
        elif kind == "switch":
            self._follow(*rest)
        elif kind == "broken":
            self._forbid_merging()
        elif kind == "restarted":
            self._dissolve(rank)
        elif kind == "stop":
            self._stopping.set()
            self._spawn(self._stop_with_front, rest[0])
        self._wake_up_loop.set()

    def _answer(self, outputs: list[GenerationOutput]) -> None:
        if self.is_front:
            self._take(outputs)
        else:
            self._links.send(FRONT, "outputs", outputs)

    def _take(self, outputs: list[GenerationOutput]) -> None:
        with self._front.lock:
            known = self._front.take(outputs)
        self.output_router.deliver_here(known)

    def _stop_with_front(self, hard_stop: bool) -> None:
        self.stop(hard_stop=hard_stop)

    # ------------------------------------------------------------ switching

    def switch(self, width: int) -> None:
        """
        Runs everything at `width` from now on. Called by the front; returns when all processes have switched. Requests
        that come meanwhile wait.

        Raises:
            ValueError: for a width that cannot be had, or at which a running request has no room.
            RuntimeError: if it did not come about. The width is the one before, and everything goes on.
        """
        if width not in self.switcher.widths:
            raise ValueError(f"width={width} cannot be had: use one of {self.switcher.widths}.")
        with self._switching:
            with self._front.lock:
                if self._is_at(width):
                    return
                self._check_switch(width)
                was_open, self._front.is_open = self._front.is_open, False
            try:
                for rank in self._links.ranks:
                    self._links.send(rank, "switch", width, self.costs)
                owners = self._switch(width, self.costs)
                with self._front.lock:
                    self._front.regroup(width, owners, dist.get_world_size())
            finally:
                with self._front.lock:
                    self._front.is_open = was_open
                    self._dispatch()

    def _is_at(self, width: int) -> bool:
        return all(len(ranks) == width for ranks in self._front.groups.values())

    def _check_switch(self, width: int) -> None:
        if not self._can_merge or len(self._links.ranks) < dist.get_world_size() - 1:
            raise RuntimeError(
                "A process is gone or its groups are broken: what is there serves on, but the width cannot change any "
                "more. Restart all processes."
            )
        if (state := self._front.too_large(self.budgets[width])) is not None:
            raise ValueError(
                f"Request {state.request_id!r} may have {state.most_tokens} tokens; width {width} holds "
                f"{self.budgets[width]}. Wait for its end, or cancel it."
            )

    def _follow(self, width: int, costs: Costs) -> None:
        with self._switching:
            try:
                self._switch(width, costs)
            except RuntimeError as error:
                logger.warning(f"Process {self.rank} did not switch to width {width}: {error}")

    def _follow_policy(self, policy: Policy) -> None:
        while self._can_merge and not self._stopped.wait(POLICY_INTERVAL):
            decision = policy.decide(self.snapshot())
            with self._front.lock:
                self._front.is_open = decision.admits
                self._dispatch()
            if decision.width == self.width:
                continue
            try:
                self.switch(decision.width)
            except (ValueError, RuntimeError) as error:
                logger.warning(f"The policy's switch to width {decision.width} ({decision.reason}) failed: {error}")
        with self._front.lock:
            self._front.is_open = True  # a gate that the policy closed for a switch would stay closed
            self._dispatch()

    def snapshot(self) -> Snapshot:
        """What a policy decides by."""
        with self._front.lock:
            waiting, running = self._front.requests()
        return Snapshot(time.monotonic(), self.width, self.budgets, waiting, running)

    # ------------------------------------------------------------ what goes wrong

    def _recovered(self) -> None:
        """This process's loop died and runs again."""
        if self.is_front:
            self._dissolve(self.rank)
        else:
            self._links.send(FRONT, "restarted")

    def _forbid_merging(self) -> None:
        with self._front.lock:
            super()._forbid_merging()
            self._dispatch()
        self._links.send(FRONT, "broken")  # the front has no line to itself

    def _lose(self, rank: int) -> None:
        if self._stopping.is_set():
            return
        if not self.is_front:
            logger.warning(f"Process {self.rank} lost the front and stops.")
            self._spawn(self._stop_with_front, True)
            return
        logger.warning(f"Process {rank} is gone; the others serve on, and the width cannot change any more.")
        self._can_merge = False
        self._dissolve(rank, is_dead=True)

    def _dissolve(self, rank: int, is_dead: bool = False) -> None:
        with self._front.lock:
            failed = self._front.dissolve(rank, is_dead)
            self._dispatch()
        self.output_router.deliver_here(failed)

    # ------------------------------------------------------------ what is going on

    def _report(self) -> None:
        """Tells the front how full the pool of this process is, whenever that has changed."""
        told = 0.0
        while not self._stopped.wait(REPORT_INTERVAL):
            if (use := self.pool.use()) != told:
                self._links.send(FRONT, "kv_use", use)
                told = use

    def status(self) -> dict[str, Any]:
        """
        Of the front: `width`, `groups` by their ranks, requests that are `held`, that are `running`, and of these
        `prefilling`; `kv_use` by rank, from 0 to 1 and of the others up to half a second old; `budgets`; widths that
        would be `refused`, with the reason; name of the `policy`; `last_switch`.
        """
        with self._front.lock:
            state, groups, refused = self.snapshot(), sorted(self._front.groups.values()), self._refused()
        use = self._kv_use | {self.rank: self.pool.use()}
        return {
            "width": self.width,
            "groups": groups,
            "held": len(state.waiting),
            "running": len(state.running),
            "prefilling": sum(request.is_prefilling for request in state.running),
            "kv_use": {rank: use.get(rank, 0.0) for ranks in groups for rank in ranks},
            "budgets": dict(self.budgets),
            "refused": refused,
            "policy": None if self.policy is None else self.policy.name,
            "last_switch": self.switches[-1] if self.switches else None,
        }

    def _refused(self) -> dict[int, str]:
        """Widths to which `switch` cannot go now, each with its sentence. The front's lock is held."""
        found = {}
        for width in self.switcher.widths:
            try:
                if not self._is_at(width):
                    self._check_switch(width)
            except (ValueError, RuntimeError) as error:
                found[width] = str(error)
        return found
