"""Which processor or GPU this is, in words: what tables of measurements name, and what a measurement is kept under."""

import functools
import platform
from pathlib import Path

import torch

# Of a processor's flags those that say how fast it multiplies matrices, on x86 and on ARM.
UNITS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")


def describe_device(device: torch.device) -> str:
    """`"NVIDIA H100 80GB HBM3"`, or `"CPU AMD EPYC 9B14 (avx2, avx512f, avx512_bf16), 2 threads"`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU {processor()}, {torch.get_num_threads()} threads"


@functools.cache
def processor() -> str:
    """Model and vector units of this machine's processor."""
    info = Path("/proc/cpuinfo")
    return name_processor(info.read_text(encoding="utf-8") if info.is_file() else "")


def name_processor(cpuinfo: str) -> str:
    """Model and vector units by the text of Linux's /proc/cpuinfo; by what Python knows where that does not tell."""
    told: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        field, _, content = line.partition(":")
        told.setdefault(field.strip(), content.strip())
    flags = told.get("flags", told.get("Features", "")).split()
    units = [unit for unit in UNITS if unit in flags]
    model = told.get("model name") or platform.processor() or platform.machine()
    return f"{model} ({', '.join(units)})" if units else model
