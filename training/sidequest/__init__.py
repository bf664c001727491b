"""
The recipe that teaches an agent to tidy its own context (SideQuest, arXiv 2602.22603), from the agent to an evaluated
adapter: `hf-infeco train sidequest`, or `run_recipe`.

Read in this order: `config` (all settings), `tasks` (what the recipe asks of an agent), `rollouts` (its traces),
`labels` (when each cursor was used last), `samples` (side threads and what they should say), `packing` (a trace with
its side threads in one row), `train` (losses), `evaluate`, `recipe` (the stages, and how a stopped run goes on).
"""

from .config import RecipeConfig
from .recipe import run_recipe
from .tasks import AgentTask

__all__ = ["AgentTask", "RecipeConfig", "run_recipe"]
