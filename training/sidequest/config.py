"""Settings of the recipe."""

from dataclasses import dataclass, field

from hf_infeco.config import Config

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, kw_only=True)
class RecipeConfig(Config):
    """
    All that decides what `run_recipe` makes (SideQuest, arXiv 2602.22603, sections on data and training).

    Args:
        tasks (`str`): "module:function" with arguments `(count, seed, held_out)` that returns `AgentTask`s. Those of
            the testbed by default.
        tool_format (`str`): "module:class" of a `hf_infeco.sidequest.ToolFormat`: how calls are written, and how text
            refers to cursors.
        agent_adapter (`str`, *optional*): folder or Hub name of a LoRA that makes the model the agent.
        traces (`int`, defaults to 215): correct traces to learn from.
        interval (`int`, defaults to 4): tool calls between two side threads, K in the paper.
        rationale (`str`, *optional*): a chat model that writes the reasons for each command; a template by default.
        adapts_main (`bool`, defaults to `False`): whether the adapter is active in the main thread too, as in the
            paper, and held to the agent there by distillation. Otherwise it is active in side threads alone, and the
            main thread stays exactly what it was.
        distillation (`float`, defaults to 500): weight of KL(agent || adapted), the mean over what the main thread
            writes; for `adapts_main`.
        target_modules (`tuple[str, ...]`): linear layers with an adapter; `all-linear` for models with other names.
        first_layer (`int`, defaults to 0): lowest layer with an adapter; nothing below it is differentiated.
        rank, alpha (`int`): of the LoRA.
        epochs (`int`, defaults to 3), batch (`int`, defaults to 4): passes over the traces, and traces in a step.
        learning_rate (`float`, defaults to 2e-4): at its highest; it falls to 0 in a straight line.
        evaluation_tasks (`int`, defaults to 100): held-out tasks of each seed.
        evaluation_seeds (`int`, defaults to 3): so many draws of them.
        at_once (`int`, defaults to 4): conversations in a batch.
        max_new_tokens (`int`, defaults to 512): of a turn, and of a side thread.
        seed (`int`): of tasks, closed cursors, weights and order.
    """

    tasks: str = "hf_infeco.training.testbed.agent.tasks:draw_tasks"
    tool_format: str = "hf_infeco.sidequest:ToolFormat"
    agent_adapter: str | None = None
    traces: int = 215
    interval: int = 4
    rationale: str | None = None
    adapts_main: bool = False
    distillation: float = 500.0
    target_modules: tuple[str, ...] = LINEAR
    first_layer: int = 0
    rank: int = 8
    alpha: int = 16
    epochs: int = 3
    batch: int = 4
    learning_rate: float = field(default=2e-4, metadata={"help": "highest learning rate"})
    evaluation_tasks: int = 100
    evaluation_seeds: int = 3
    at_once: int = 4
    max_new_tokens: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "target_modules", tuple(self.target_modules))  # JSON has lists
        super().__post_init__()

    def validate(self) -> None:
        counts = "traces interval rank alpha epochs batch evaluation_seeds at_once max_new_tokens"
        for name in counts.split():
            if getattr(self, name) < 1:
                raise ValueError(f"RecipeConfig.{name}={getattr(self, name)} must be at least 1.")
        for name in ("tasks", "tool_format"):
            if getattr(self, name).count(":") != 1:
                raise ValueError(
                    f"RecipeConfig.{name}={getattr(self, name)!r} must name an object as 'module:name', such as "
                    f"{getattr(type(self), name)!r}."
                )
        if not (self.learning_rate > 0 and self.distillation >= 0 and self.first_layer >= 0):
            raise ValueError(
                f"RecipeConfig.learning_rate={self.learning_rate} must be above 0; distillation={self.distillation} "
                f"and first_layer={self.first_layer} must not be negative."
            )
