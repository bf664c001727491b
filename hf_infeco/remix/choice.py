"""From logits to the token of each position and how sure it is."""

import torch
from torch import Tensor

from .canvas import Canvas
from .config import RemixConfig


class Choice:
    """
    Args:
        allowed_tokens (bool, `[G, V]` or `[B, G, V]`, *optional*): legal tokens of each position.
        mask_token_id (`int`): legal nowhere.
        canvas (`Canvas`): whose answer it is.
        config (`RemixConfig`): `temperature` and `seed`.
    """

    def __init__(self, allowed_tokens: Tensor | None, mask_token_id: int, canvas: Canvas, config: RemixConfig) -> None:
        self.mask_token_id, self.temperature = mask_token_id, config.temperature
        self.allowed = None
        if allowed_tokens is not None:
            self.allowed = check_allowed_tokens(allowed_tokens, mask_token_id, canvas)
        self.generator = None
        if config.seed is not None:
            self.generator = torch.Generator(canvas.ids.device).manual_seed(config.seed)

    def probabilities(self, logits: Tensor, first: int, places: Tensor) -> Tensor:
        """
        Distributions of places over their legal tokens, float32 `[N, V]`.

        Args:
            logits (`[B, g, V]`): of the answer's positions from `first` on.
            places (bool, `[B, G]`): which of them.
        """
        rows, columns = places.nonzero(as_tuple=True)
        scores = logits[rows, columns - first].float()
        scores[:, self.mask_token_id] = float("-inf")
        if self.allowed is not None:
            if scores.shape[1] != self.allowed.shape[2]:
                raise ValueError(
                    f"allowed_tokens is for {self.allowed.shape[2]} tokens, the model scores {scores.shape[1]}: its "
                    "last dimension must be the number of logits."
                )
            scores.masked_fill_(~self.allowed[rows, columns], float("-inf"))
        return scores.softmax(1)

    def tokens(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """A token of each distribution, int64 `[N]`, and its probability, float32 `[N]`."""
        if self.temperature == 0:
            confidence, tokens = p.max(1)
            return tokens, confidence
        # Gumbel's trick; in double, as rare tokens are lost in single precision.
        noise = torch.empty(p.shape, dtype=torch.float64, device=p.device).exponential_(generator=self.generator)
        tokens = (p.double().log() / self.temperature - noise.log()).argmax(1)
        return tokens, p.gather(1, tokens[:, None])[:, 0]


def check_allowed_tokens(allowed: Tensor, mask_token_id: int, canvas: Canvas) -> Tensor:
    """`[B, G, V]`, the mask token left out."""
    rows, length = canvas.answer.shape
    if allowed.ndim == 2:
        allowed = allowed.expand(rows, -1, -1)
    if allowed.ndim != 3 or allowed.shape[:2] != (rows, length) or allowed.dtype != torch.bool:
        raise ValueError(
            f"allowed_tokens is {list(allowed.shape)} of {allowed.dtype}: pass bool [{length}, V] or "
            f"[{rows}, {length}, V], a row of legal tokens for each position of the answer."
        )
    allowed = allowed.to(canvas.ids.device).clone()
    allowed[:, :, mask_token_id] = False
    without = (~allowed.any(2)).nonzero().tolist()
    if without:
        raise ValueError(f"allowed_tokens leaves no token but the mask at row and position {without[0]}: allow one.")
    return allowed
