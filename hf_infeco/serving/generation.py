"""Requests of transformers' HTTP handlers, answered by a `FlyingManager`."""

import asyncio
import time
from typing import Any

from fastapi import HTTPException
from transformers import GenerationConfig
from transformers.cli.serving.utils import CBGenerateManager, CBStreamer, GenerationState, build_response_parser
from transformers.generation.continuous_batching.requests import GenerationOutput

from ..flying import FlyingManager
from .metrics import Counters
from .reading import ForgivingParser
from .stopping import StoppingQueue, cut

NEW_TOKENS = 1024  # of a request that names no number, where they fit

# transformers makes a filter that a request can set only where the config has a value that does something. These are
# never used: each request sets all three.
SAMPLING = dict(do_sample=True, temperature=0.5, top_k=1, top_p=0.5)


class Streamer(CBStreamer):
    """transformers' streamer, which keeps the tokens and forgets its request when it is cancelled."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.tokens: list[int] = []

    def put(self, output: GenerationOutput) -> None:
        self.tokens = output.generated_tokens
        super().put(output)

    def cancel(self) -> None:
        super().cancel()
        self._cb.output_router.result_handlers.pop(self._request_id, None)  # it gets no answer that would do so


class FlyingGeneration(CBGenerateManager):
    """
    What transformers' handlers ask for texts. Unlike its base it takes a manager that runs already, samples by
    request, honours stop strings, registers for answers before it asks, and cancels what nobody waits for.

    Args:
        manager (`FlyingManager`): with `per_request_processors` and the generation settings `SAMPLING`.
        counters (`Counters`): which it counts tokens in.
    """

    def __init__(self, manager: FlyingManager, counters: Counters):
        super().__init__()
        self._cb, self._counters = manager, counters
        self._positions = getattr(manager.model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30

    def generate_streaming(
        self,
        model: Any,
        processor: Any,
        inputs: dict[str, Any],
        gen_config: GenerationConfig,
        request_id: str,
        response_parser: Any = None,
    ) -> tuple[asyncio.Queue, Streamer]:
        """As its base's. A request that does not fit raises a ValueError, a manager that stops a RuntimeError."""
        ids, manager, counters = inputs["input_ids"], self._cb, self._counters
        if not ids:
            raise ValueError("The prompt is empty. Give it at least one token.")
        if gen_config.max_new_tokens is None:
            gen_config.max_new_tokens = self._room(len(ids))
        if len(ids) + gen_config.max_new_tokens > self._positions:
            raise ValueError(
                f"{len(ids)} prompt and {gen_config.max_new_tokens} new tokens are more than the {self._positions} "
                "positions of this model. Shorten the prompt, or ask for fewer."
            )
        queue = StoppingQueue(gen_config.stop_strings or (), lambda: streamer.cancel())
        loop, start = asyncio.get_running_loop(), time.perf_counter()
        if response_parser is not None:
            response_parser = ForgivingParser(response_parser, lambda: build_response_parser(processor, model, []))
        streamer = Streamer(manager, request_id, processor.backend_tokenizer, loop, queue, response_parser)

        def receive(output: GenerationOutput) -> None:
            if not streamer.tokens and output.generated_tokens:
                counters.first_tokens += 1
                counters.first_token_seconds += time.perf_counter() - start
            counters.generated_tokens += len(output.generated_tokens) - len(streamer.tokens)
            try:
                streamer.put(output)
                if output.error is not None:
                    queue.put_nowait(_failure(output.error))
                elif output.is_finished():
                    streamer.end()
            except Exception as error:  # a tokenizer or a template that fails must not leave its client waiting
                queue.put_nowait(_failure(repr(error)))
                streamer.cancel()

        manager.register_result_handler(request_id, receive)
        try:
            manager.add_request(
                ids,
                request_id,
                max_new_tokens=gen_config.max_new_tokens,
                streaming=True,
                eos_token_id=gen_config.eos_token_id,
                **_sampling_of(gen_config),
            )
        except (ValueError, RuntimeError):
            streamer.cancel()
            raise
        counters.prompt_tokens += len(ids)
        return queue, streamer

    async def generate_non_streaming(
        self, model: Any, processor: Any, inputs: dict[str, Any], gen_config: GenerationConfig, request_id: str
    ) -> tuple[str, int, list[int]]:
        """As its base's, and cancelled with the task that waits for it."""
        queue, streamer = self.generate_streaming(model, processor, inputs, gen_config, request_id)
        try:
            while await queue.get() is not None:
                pass
        except asyncio.CancelledError:
            streamer.cancel()
            raise
        text = cut(processor.decode(streamer.tokens, skip_special_tokens=True), gen_config.stop_strings or ())
        return text, len(inputs["input_ids"]), streamer.tokens

    def _room(self, prompt_tokens: int) -> int:
        """New tokens of a request that names no number: as many as fit into the narrowest group that takes it."""
        fitting = [budget for budget in self._cb.budgets.values() if budget > prompt_tokens]
        most = min(self._positions, *fitting) if fitting else self._positions
        return max(1, min(NEW_TOKENS, most - prompt_tokens))


class OneGeneration(GenerationState):
    """What transformers' handlers look a model's generation up in; here there is one."""

    def __init__(self, generation: FlyingGeneration):
        super().__init__(continuous_batching=True)
        self._generation = generation

    def get_manager(self, model_id: str, use_cb: bool = False) -> FlyingGeneration:
        return self._generation


def _failure(reason: str) -> HTTPException:
    return HTTPException(status_code=503, detail=f"The request failed: {reason}")


def _sampling_of(config: GenerationConfig) -> dict[str, Any]:
    if not config.do_sample:
        return dict(temperature=1.0, top_k=1, top_p=1.0)
    return dict(
        temperature=float(config.temperature or 1.0),
        top_k=int(config.top_k or 1 << 30),
        top_p=float(config.top_p or 1.0),
    )
