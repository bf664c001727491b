"""ReMix's settings."""

from dataclasses import dataclass, field

from ..config import Config

STRATEGIES = ("one", "top_k", "confidence", "remix")


@dataclass(frozen=True, kw_only=True)
class RemixConfig(Config):
    """
    How a masked diffusion language model fills in its answer (ReMix, arXiv 2602.22868).

    The answer is filled block by block. A step is one forward and commits at least one position of the current block:

    - `"one"`: the surest one.
    - `"top_k"`: the surest `top_k`.
    - `"confidence"`: all surer than `tau_conf`, at most 70 % of the open ones (but 5) and 20.
    - `"remix"`: the same, and the positions left show the model what they lean to: a soft embedding in place of the
      mask's, until two distributions in a row disagree. With `beta=0` it equals `"confidence"`.

    Args:
        max_new_tokens (`int`, defaults to 256): length of the answer, a multiple of `block_length`.
        block_length (`int`, defaults to 128): positions of a block.
        strategy (`str`, defaults to `"remix"`): see above.
        tau_conf (`float`, defaults to 0.8): probability above which a token is committed.
        tau_rej (`float`, defaults to 0.3): Jensen-Shannon divergence in nats, at most 0.693, above which a position
            goes back to the mask.
        beta (`float`, defaults to 0.5): how far a soft embedding moves from the mask's, 0 to 1.
        top_k (`int`, defaults to 2): positions that `"top_k"` commits in a step.
        sticky_reject (`bool`, defaults to `False`): forget a rejected position's distribution, as the authors' code
            does: with `tau_rej` below 0.346 it then stays a mask until it is committed.
        temperature (`float`, defaults to 0.0): above 0 tokens are sampled; confidences stay those of temperature 1.
        seed (`int`, *optional*): of the sampling; the device's generator otherwise.
        reuse_cache (`bool`, defaults to `False`): keep keys and values of finished blocks. Exact where attention is
            block-causal, an approximation where every token sees every other.
    """

    max_new_tokens: int = field(default=256, metadata={"help": "length of the answer"})
    block_length: int = field(default=128, metadata={"help": "positions of a block"})
    strategy: str = field(default="remix", metadata={"help": "one of " + ", ".join(STRATEGIES)})
    tau_conf: float = field(default=0.8, metadata={"help": "probability above which a token is committed"})
    tau_rej: float = field(default=0.3, metadata={"help": "divergence in nats above which mixing stops"})
    beta: float = field(default=0.5, metadata={"help": "how far soft embeddings move from the mask's"})
    top_k: int = field(default=2, metadata={"help": "positions that top_k commits in a step"})
    sticky_reject: bool = field(default=False, metadata={"help": "forget a rejected position's distribution"})
    temperature: float = field(default=0.0, metadata={"help": "above 0 tokens are sampled"})
    seed: int | None = field(default=None, metadata={"help": "seed of the sampling"})
    reuse_cache: bool = field(default=False, metadata={"help": "keep keys and values of finished blocks"})

    def validate(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ValueError(f"RemixConfig.strategy={self.strategy!r} is none of {STRATEGIES}.")
        for name in ("max_new_tokens", "block_length", "top_k"):
            if getattr(self, name) < 1:
                raise ValueError(f"RemixConfig.{name}={getattr(self, name)} must be at least 1.")
        if self.max_new_tokens % self.block_length:
            shorter = next(n for n in range(self.block_length, 0, -1) if self.max_new_tokens % n == 0)
            raise ValueError(
                f"RemixConfig.block_length={self.block_length} does not divide max_new_tokens={self.max_new_tokens}: "
                f"use block_length={shorter}, say, or max_new_tokens="
                f"{-(-self.max_new_tokens // self.block_length) * self.block_length}."
            )
        for name in ("tau_conf", "beta"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"RemixConfig.{name}={getattr(self, name)} must be between 0 and 1.")
        for name in ("tau_rej", "temperature"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"RemixConfig.{name}={getattr(self, name)} must be 0 or more.")
