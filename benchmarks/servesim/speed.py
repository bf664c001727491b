"""How long a simulation takes, and that its memory does not grow with the trace."""

import json
import subprocess
import sys
from typing import Any

from .public import RUNS

# Eight instances under a load that they keep up with. A process of its own, for its peak of memory; that is read from
# /proc, because getrusage begins with the peak of the process that started it.
SCRIPT = """
import json, sys, time
from dataclasses import replace
from hf_infeco.benchmarks.servesim.public import RUNS
from hf_infeco.servesim import simulate
from hf_infeco.servesim.generators import poisson
requests = int(sys.argv[1])
(instance,) = RUNS[1].cluster.instances
cluster = replace(RUNS[1].cluster, instances=(replace(instance, count=8),))
start = time.process_time()
results = simulate(cluster, poisson(28.0, requests, 800, 300))
seconds = time.process_time() - start
steps = sum(formula.steps for formula in results.formulas)
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
print(json.dumps({"requests": requests, "seconds": seconds, "steps": steps, "peak_mib": peak,
                  "saturated": results.is_saturated}))
"""


def measure_speed(counts: tuple[int, ...]) -> list[dict[str, Any]]:
    """An entry per length of the trace: processor seconds of one core, steps, and the process' peak of memory."""
    return [_run(count) for count in counts]


def _run(count: int) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(count)], capture_output=True, text=True, check=True)
    entry = json.loads(done.stdout)
    return entry | {"model": RUNS[1].title, "micros_per_step": 1e6 * entry["seconds"] / entry["steps"]}
