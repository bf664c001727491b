"""`hf-infeco env`: the text that a bug report needs."""

import json
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

PACKAGES = ("hf_infeco", "torch", "transformers", "accelerate", "peft", "triton", "numba")
NOT_THERE = "not installed"


def env(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Print the versions, the machine and the kernel backends; paste it into a bug report."""
    found = environment()
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    width = max(map(len, found))
    for name, value in found.items():
        typer.echo(f"{name:<{width}}  {', '.join(value) if isinstance(value, list) else value}")


def environment() -> dict[str, Any]:
    """Everything that `env` prints, ready for JSON."""
    return {
        **{name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "os": platform.platform(),
        "cpu": _cpu(),
        "gpu": _gpus(),
        "driver": _driver(),
        "backends": _backends(),
    }


def _version(package: str) -> str:
    """Read from the metadata, so that a package which fails on import is reported too."""
    try:
        return version(package)
    except PackageNotFoundError:
        return NOT_THERE


def _cpu() -> str:
    """`platform.processor()` is empty on most Linux systems; the kernel knows the model."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} ({len(names)} cores)" if names else platform.processor() or platform.machine()


def _gpus() -> list[str]:
    try:
        import torch
    except ImportError:
        return [NOT_THERE]
    if not torch.cuda.is_available():
        return ["none that torch can use"]
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def _driver() -> str:
    command = shutil.which("nvidia-smi")
    if command is None:
        return "none found"
    query = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "nvidia-smi does not answer"
    return ", ".join(sorted(set(done.stdout.split()))) if done.returncode == 0 else "nvidia-smi fails"


def _backends() -> list[str]:
    """The kinds of kernel this machine can run; which one a call gets is decided by `hf_infeco.kernels`."""
    found = ["reference"]
    if find_spec("numba"):
        found.append("cpu")
    if find_spec("triton") and not _gpus()[0].startswith("no"):
        found.append("triton")
    return found
