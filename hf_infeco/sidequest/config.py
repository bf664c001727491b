"""SideQuest's settings."""

from dataclasses import dataclass, field

from ..config import Config

TRIGGER = "** Memory management mode **"


@dataclass(frozen=True, kw_only=True)
class SideQuestConfig(Config):
    """
    How an agent runs and tidies its context (SideQuest, arXiv 2602.22603).

    Args:
        interval (`int`, defaults to 4): a side thread is forked after every so many tool calls, K in the paper.
        trigger (`str`): the user message that opens a side thread.
        max_side_tokens (`int`, defaults to 512): tokens after which a side thread that has not ended is given up.
        synchronous (`bool`, defaults to `False`): decode the side thread while the main thread waits, and apply its
            command at once. Otherwise both decode in the same forward passes, and the command is applied at the next
            turn that begins after it is complete.
        max_new_tokens (`int`, defaults to 1024): tokens of one turn of the main thread.
        max_turns (`int`, defaults to 64): tool calls after which the session gives up.
        temperature (`float`, defaults to 0.0): above 0 the main thread is sampled; the side thread is always greedy.
        seed (`int`, *optional*): of the sampling; the device's generator otherwise.
        main_adapters (`tuple[str, ...]`): PEFT adapters that are active for the main thread's tokens. With
            none named for either thread, the model is left as it is.
        side_adapters (`tuple[str, ...]`): those of the side thread's tokens.
    """

    interval: int = field(default=4, metadata={"help": "tool calls between two side threads"})
    trigger: str = field(default=TRIGGER, metadata={"help": "user message that opens a side thread"})
    max_side_tokens: int = field(default=512, metadata={"help": "longest side thread"})
    synchronous: bool = field(default=False, metadata={"help": "the main thread waits for the side thread"})
    max_new_tokens: int = field(default=1024, metadata={"help": "longest turn of the main thread"})
    max_turns: int = field(default=64, metadata={"help": "most tool calls"})
    temperature: float = field(default=0.0, metadata={"help": "above 0 the main thread is sampled"})
    seed: int | None = field(default=None, metadata={"help": "seed of the sampling"})
    main_adapters: tuple[str, ...] = field(default=(), metadata={"help": "adapters of the main thread"})
    side_adapters: tuple[str, ...] = field(default=(), metadata={"help": "adapters of the side thread"})

    def __post_init__(self) -> None:
        for name in ("main_adapters", "side_adapters"):
            adapters = getattr(self, name)
            if isinstance(adapters, str) or not all(isinstance(each, str) for each in adapters):
                raise ValueError(f"SideQuestConfig.{name}={adapters!r} must be a list of adapter names.")
            object.__setattr__(self, name, tuple(adapters))  # JSON has lists
        super().__post_init__()

    def validate(self) -> None:
        for name in ("interval", "max_side_tokens", "max_new_tokens", "max_turns"):
            if getattr(self, name) < 1:
                raise ValueError(f"SideQuestConfig.{name}={getattr(self, name)} must be at least 1.")
        if not self.trigger.strip():
            raise ValueError(
                f"SideQuestConfig.trigger={self.trigger!r} is empty: the side thread is told by it what to do."
            )
        if not self.temperature >= 0:
            raise ValueError(f"SideQuestConfig.temperature={self.temperature} must be 0 or more.")
