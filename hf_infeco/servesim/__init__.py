"""
The serving simulator: what a cluster would do with a trace, without the cluster.

    results = servesim.simulate("cluster.yaml", "trace.jsonl")
    results.summary()

It needs neither torch nor a GPU, but the tables of a profile. Read in this order: `settings`, `step` (the closed
formula) with `tables` and `grid` below it, `rank` (a scheduler), `engine` (an instance), `simulation`.
"""

from .requests import Request
from .settings import Cluster, Correction, Instance, Link, Power, Scheduler
from .simulation import simulate
from .traces import read_trace, write_trace

__all__ = [
    "Cluster",
    "Correction",
    "Instance",
    "Link",
    "Power",
    "Request",
    "Scheduler",
    "read_trace",
    "simulate",
    "write_trace",
]
