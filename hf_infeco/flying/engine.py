"""transformers' continuous batching at whatever width the switcher has: the parts of it that know how wide it runs."""

import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching import ContinuousBatchingManager
from transformers.generation.continuous_batching.input_outputs import ContinuousBatchingIOs
from transformers.utils import logging

from .. import compat
from ..attention import ATTENTION_NAME
from .pool import Pool
from .sampling import make_greedy_exact
from .switcher import ParallelSwitcher, part_random_state, share_random_state
from .window import Costs, Disagreement, Window

logger = logging.get_logger(__name__)

GRACE = 0.5  # seconds by which the word to stop may come later than a group's last step
CALIBRATION_TOKENS, CALIBRATION_BYTES = 128, 1 << 20


class Engine(ContinuousBatchingManager):
    """
    One process's loop, which can change its width between two steps. `FlyingManager` adds the front.

    Attributes:
        budgets (`dict[int, int]`): most tokens of one request at each width.
        switches (`list[dict]`): of each switch: width, seconds waited, in the window and of the flip, bytes sent.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        generation_config: GenerationConfig,
        config: ContinuousBatchingConfig,
        max_width: int,
        timeout: float,
    ):
        super().__init__(model, generation_config, config)
        make_greedy_exact(self.logit_processor)
        self.timeout = timeout
        self.switcher = ParallelSwitcher(model, max_width, timeout)
        limit = timedelta(seconds=timeout)
        self._world, self._data = dist.new_group(backend="gloo", timeout=limit), dist.new_group(timeout=limit)
        self.warmup()
        processor = self.batch_processor
        self.pool = Pool(processor.cache, self.switcher.plan, self.continuous_batching_config.page_size)
        self._inputs = {1: processor.inputs_and_outputs}
        self._adopt_width()
        self.budgets = {width: self.pool.budget(self.switcher.seat(width)) for width in self.switcher.widths}
        self.switches: list[dict[str, Any]] = []
        self._can_merge, self._stopping = True, threading.Event()

    @property
    def width(self) -> int:
        """Processes that run as one now."""
        return self.switcher.width

    def calibrate(self) -> Costs:
        """Measures what computing a token and moving a byte cost. Collective; before anything runs."""
        ids = torch.ones(1, CALIBRATION_TOKENS, dtype=torch.long, device=self.model.device)
        token = min(self._seconds(lambda: self.model(input_ids=ids, use_cache=False)) for _ in range(2))
        peer, block = dist.get_rank() ^ 1, torch.empty(CALIBRATION_BYTES, dtype=torch.uint8, device=self.model.device)
        byte = start = 0.0
        if peer < dist.get_world_size():
            start, byte = (min(self._swap_seconds(size, peer, block) for _ in range(2)) for size in (1, len(block)))
        measured = [Costs(byte / CALIBRATION_BYTES, start, token / CALIBRATION_TOKENS)]
        dist.broadcast_object_list(measured, 0, group=self._world)
        return measured[0]

    @torch.no_grad()
    def _seconds(self, call: Callable[[], Any]) -> float:
        start = time.perf_counter()
        call()
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def _swap_seconds(self, size: int, peer: int, block: torch.Tensor) -> float:
        def swap() -> None:
            outgoing: Any = dist.isend(block[:size].clone(), peer, group=self._data)
            dist.recv(block[:size], peer, group=self._data)
            outgoing.wait()

        return self._seconds(swap)

    # ------------------------------------------------------------ the switch

    def _switch(self, target: int, costs: Costs) -> dict[str, int]:
        """
        Parks the loop, moves everything to `target` and goes on. Every process calls this.

        Returns:
            Who drives each request now.

        Raises:
            RuntimeError: if it did not come about; the width is then the one before, and all requests go on.
        """
        start = time.perf_counter()
        window = Window(
            self.switcher, self.pool, self.batch_processor.scheduler, self._world, self._data, self.timeout
        )
        try:
            is_ready = self._let_in()
            with self.pause() if is_ready else nullcontext():
                parked = time.perf_counter()
                self._move(window, target, costs, is_ready)
                dist.barrier(group=self._world)
        except Disagreement:
            raise
        except RuntimeError:  # a collective that broke, and its group with it
            self._forbid_merging()
            raise
        now = time.perf_counter()
        self.switches.append(
            {
                "width": target,
                "wait_s": parked - start,
                "window_s": now - parked,
                "flip_s": window.flip_s,
                "bytes": window.moved_bytes,
                "recomputed": window.num_recomputed,
                "requests": len(window.active),
            }
        )
        return window.owners()

    def _let_in(self) -> bool:
        """
        Lets all that was submitted reach the scheduler; whether the loop is there at all. A step empties the inbox,
        then stops for a pause, then hands on what it took. So one pause may find the inbox not looked at since, and a
        second one what was taken still in the loop's hands, which a switch would hand to the new group or to nobody.
        """
        try:
            for _ in range(2):
                with self.pause():
                    pass
            return True
        except RuntimeError:
            return False

    def _move(self, window: Window, target: int, costs: Costs, is_ready: bool) -> None:
        window.gather(target, is_ready)
        error: BaseException | None = None
        try:
            window.stage(costs)
            window.exchange()
        except Exception as caught:
            error = caught
        self._go_on(window, error, "staging")
        try:
            window.move_in()
            self._adopt_width()
        except Exception as caught:
            error = caught
        self._go_on(window, error, "moving in")
        if target > 1:
            share_random_state(self.switcher.groups[target], self.model.device)
        else:
            part_random_state()

    def _go_on(self, window: Window, error: BaseException | None, step: str) -> None:
        """Votes; where one process failed, all take the switch back."""
        is_well = False
        try:
            is_well = window.agree(error is None)
        finally:
            if not is_well:
                window.roll_back()
                self._adopt_width()
        if not is_well:
            where = f"this process: {error!r}" if error else "another process"
            raise Disagreement(f"The switch was taken back: {step} failed in {where}.") from error

    def _adopt_width(self) -> None:
        """Tells transformers' parts who runs as one and who drives."""
        processor, width, rank = self.batch_processor, self.width, dist.get_rank()
        group = self.switcher.group
        helper = processor.distributed_helper
        helper.tp_size, helper.tp_local_rank = width, rank % width
        helper.tp_group = group.data if group else None
        helper.cpu_comm_group = group.loop if group else None
        helper.tp_root_global_rank = rank - rank % width
        helper.dp_rank, helper.dp_size = rank // width, dist.get_world_size() // width
        helper.is_tp_driver = self.is_tp_driver = rank % width == 0
        processor.input_queue = self.input_queue if self.is_tp_driver else None
        processor.cancel_queue = self.cancel_queue if self.is_tp_driver else None
        if width not in self._inputs:
            self._inputs[width] = ContinuousBatchingIOs(
                cache=processor.cache,
                config=processor.config,
                continuous_batching_config=processor.cb_config,
                device=processor.model_device,
                model_dtype=processor.model_dtype,
                logit_processor=processor.logit_processor,
            )
        processor.inputs_and_outputs = processor.model_runner.inputs_and_outputs = self._inputs[width]
        self._inputs[width].reset()

    # ------------------------------------------------------------ a loop that died

    def _forbid_merging(self) -> None:
        """A group of this process is broken: the width cannot change any more."""
        self._can_merge = False

    def _watch(self, recovered: Callable[[], None]) -> None:
        """Starts a loop that died again, alone at width 1; `recovered()` is called each time."""
        while (thread := self._generation_thread) is not None:
            thread.join()
            if self.background_thread_status.fatal_error is None:  # its group ended it, maybe because all are to stop
                self._stopping.wait(GRACE)
            if self._stopping.is_set():
                return
            logger.warning(f"The loop of process {dist.get_rank()} ended and starts again at width 1.")
            if self.width > 1:
                self._forbid_merging()  # the others of the group may be inside one of its collectives
            self.switcher.flip(1)
            self.pool.lay_out(self.switcher.seat(1))
            self._adopt_width()
            super().start()
            recovered()


def require_servable(model: PreTrainedModel, config: ContinuousBatchingConfig) -> None:
    """Refuses a patched model, and a pool without a size."""
    name = type(model).__name__
    if compat.attention_name(compat.decoder_of(model)) == ATTENTION_NAME:
        raise ValueError(
            f"This {name} is patched, and paged caches of continuous batching do not run on hf_infeco's attention. "
            "Call hf_infeco.unpatch(model) first; ParallelSwitcher switches a patched model for generate()."
        )
    if config.num_blocks is None:
        raise ValueError(
            "continuous_batching_config.num_blocks is not set: each process would take most of the machine's memory "
            "for its KV cache. Set it, with page_size: both together are the tokens that a process holds at width 1."
        )
