"""
SideQuest: an agent's model tidies its own KV cache as a side task (arXiv 2602.22603).

`session` is the public call, `conversation` the loop of turns and side threads, `threads` how these share caches and
go through the model. `chat` and `cursors` find each tool call's tokens, `command` reads what a side thread wants
deleted, `memory` drops it, `policies` are what SideQuest is compared with. `foreseen` is a short cut for measuring.
"""

from .command import RejectedCommand, parse_command
from .config import SideQuestConfig
from .conversation import ContextFull
from .cursors import CursorMap
from .foreseen import replay
from .heuristics import H2O, RKV, SinkWindow, SnapKV
from .memory import evict, fork
from .policies import KeepAll, Labels, OldestOutputs, Policy, SideQuest
from .record import Event, Record
from .session import SideQuestResult, SideQuestSession, run_many
from .tools import Call, ToolFormat

__all__ = [
    "H2O",
    "RKV",
    "Call",
    "ContextFull",
    "CursorMap",
    "Event",
    "KeepAll",
    "Labels",
    "OldestOutputs",
    "Policy",
    "Record",
    "RejectedCommand",
    "SideQuest",
    "SideQuestConfig",
    "SideQuestResult",
    "SideQuestSession",
    "SinkWindow",
    "SnapKV",
    "ToolFormat",
    "evict",
    "fork",
    "parse_command",
    "replay",
    "run_many",
]
