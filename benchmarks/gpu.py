"""
Every benchmark that needs CUDA, one after the other: `python -m hf_infeco.benchmarks.gpu`, or `make gpu`.

Each writes its results by itself, so that one which fails takes nothing from the others. A short table comes last.
"""

import sys
import traceback

import torch

from .innerq import gpu as innerq_gpu
from .s2o import gpu as s2o_gpu
from .static import gpu as static_gpu


def main() -> int:
    lines, failed = [], 0
    for system in (s2o_gpu, innerq_gpu, static_gpu):
        try:
            lines += system.main()
        except Exception:
            traceback.print_exc()
            lines.append(f"{system.__name__} failed, see above")
            failed += 1
        torch.cuda.empty_cache()
    print(*lines, sep="\n")
    return failed


if __name__ == "__main__":
    sys.exit(main())
