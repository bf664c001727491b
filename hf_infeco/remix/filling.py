"""The steps of an answer: forward, choose, commit, compare."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from .canvas import Canvas
from .choice import Choice
from .denoiser import Denoiser
from .mixing import Mixing
from .rules import accept

OPEN, MIXED, DECIDED = 0, 1, 2  # what a forward sees at a position of the answer


@dataclass(frozen=True)
class RemixStep:
    """
    One forward; dimensions are rows and positions of the answer.

    Attributes:
        states (`torch.Tensor` of int8, `[B, G]`): what the forward saw: 0 a mask, 1 a mixed position, 2 a token.
        tokens (`torch.Tensor` of int64, `[B, G]`): the answer after the step, masks where it is open.
        leaning (`torch.Tensor` of int64, `[B, G]`): the same, and the likeliest tokens of the forward where a row's
            current block is open.
    """

    states: Tensor
    tokens: Tensor
    leaning: Tensor


@dataclass(frozen=True)
class RemixOutput:
    """
    Attributes:
        sequences (`torch.Tensor` of int64, `[B, P + max_new_tokens]`): prompts and answers.
        forwards (`torch.Tensor` of int64, `[B]`): forwards until a row was finished.
        steps (`list[RemixStep]`): one per forward if `return_states`, else empty.
    """

    sequences: Tensor
    forwards: Tensor
    steps: list[RemixStep]


class Filling:
    """
    Args:
        denoiser (`Denoiser`): the model.
        prompts, attention_mask, allowed_tokens: see `generate`.
    """

    def __init__(
        self, denoiser: Denoiser, prompts: Tensor, attention_mask: Tensor | None, allowed_tokens: Tensor | None
    ) -> None:
        self.denoiser, self.config = denoiser, denoiser.config
        self.canvas, self.embeds = denoiser.start(prompts, attention_mask)
        self.answer_embeds = self.embeds[:, self.canvas.prompt_length :]
        self.choice = Choice(allowed_tokens, denoiser.mask_token_id, self.canvas, self.config)
        self.mixing = None
        if self.config.strategy == "remix":
            self.mixing = Mixing(denoiser.weight, denoiser.mask_token_id, self.config)
        self.window = self.canvas.window(self.config.reuse_cache)

    def run(self, streamer: BaseStreamer | None = None, return_states: bool = False) -> RemixOutput:
        """All steps."""
        forwards = torch.zeros(len(self.canvas.ids), dtype=torch.long, device=self.canvas.ids.device)
        steps: list[RemixStep] = []
        streamed = 0  # positions of the answer
        while self.canvas.is_open.any():
            forwards += self.canvas.is_open.any(1)
            states = self._states() if return_states else None
            leaning = self.step()
            if states is not None:
                steps.append(RemixStep(states, self.canvas.answer.clone(), leaning))
            if streamer is not None:
                streamed = stream(streamer, self.canvas, leaning, streamed)
        if streamer is not None:
            streamer.end()
        return RemixOutput(self.canvas.ids, forwards, steps)

    def step(self) -> Tensor:
        """One forward; returns what a `RemixStep` calls leaning."""
        window, canvas = self.window, self.canvas
        if self.mixing is not None:
            self.answer_embeds[window] = self.mixing.inputs()
        logits, first = self.denoiser.logits(canvas, self.embeds)
        p = self.choice.probabilities(logits, first, window)
        tokens, confidence = self.choice.tokens(p)
        leaning = canvas.answer.masked_scatter(window, tokens)
        scattered = torch.zeros_like(window, dtype=torch.float32).masked_scatter(window, confidence)
        accepted = accept(scattered, window, self.config)
        canvas.commit(accepted, leaning)
        self.answer_embeds[accepted] = self.denoiser.weight[leaning[accepted]]
        self.window = canvas.window(self.config.reuse_cache)
        if self.mixing is not None:
            self.mixing.observe(p, ~accepted[window])
            entering = self.window & ~window
            if entering.any():
                self._enter(self.mixing, logits, first, entering)
        return leaning

    def _enter(self, mixing: Mixing, logits: Tensor, first: int, entering: Tensor) -> None:
        """Rows have come to another block; this forward has computed its distributions unless it could not see it."""
        staying = (self.window & ~entering).flatten().nonzero()
        places = entering.flatten().nonzero()
        order = torch.cat([staying, places]).flatten().argsort()
        if self.denoiser.adapter.block_length is None:
            p = self.choice.probabilities(logits, first, entering)
        else:
            p = torch.full((len(places), logits.shape[2]), torch.nan, dtype=torch.float32, device=logits.device)
        mixing.enter(p, order)

    def _states(self) -> Tensor:
        states = torch.where(self.canvas.is_open, OPEN, DECIDED).to(torch.int8)
        if self.mixing is not None and len(self.mixing.is_mixing) > 0:
            states[self.window] = torch.where(self.mixing.is_mixing, MIXED, OPEN).to(torch.int8)
        return states


def stream(streamer: BaseStreamer, canvas: Canvas, leaning: Tensor, streamed: int) -> int:
    """Gives the streamer the blocks that are finished, else a draft if it takes one; returns what it has got."""
    is_finished = canvas.block[0] < canvas.current(together=True)[0]
    finished = int(is_finished.sum())
    if finished > streamed:
        streamer.put(canvas.answer[0, streamed:finished].cpu())
    elif hasattr(streamer, "put_draft"):
        streamer.put_draft(leaning[0, streamed:].cpu())
    return finished
