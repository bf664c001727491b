"""`hf-infeco env`: the text that a bug report needs."""

import json
import os
import pkgutil
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer

PACKAGES = ("hf_infeco", "torch", "transformers", "accelerate", "peft", "triton", "numba")
NOT_THERE = "not installed"


def env(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Print the versions, the machine and the kernels; paste it into a bug report."""
    found = environment()
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    width = max(map(len, found))
    for name, value in found.items():
        typer.echo(f"{name:<{width}}  {', '.join(value) if isinstance(value, list) else value}")


def environment() -> dict[str, Any]:
    """Everything that `env` prints, ready for JSON."""
    from ..kernels.devices import processor

    return {
        **{name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "os": platform.platform(),
        "cpu": f"{processor()}, {os.cpu_count()} cores",
        "gpu": _gpus(),
        "driver": _driver(),
        "kernels": _kernels(),
    }


def _version(package: str) -> str:
    """Read from the metadata, so that a package which fails on import is reported too."""
    try:
        return version(package)
    except PackageNotFoundError:
        return NOT_THERE


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


def _kernels() -> list[str]:
    """The implementations that are installed of each operation, such as "s2o: reference"."""
    import hf_infeco.kernels as kernels

    operations = [module.name for module in pkgutil.iter_modules(kernels.__path__) if module.ispkg]
    folders = {name: [f"{folder}/{name}" for folder in kernels.__path__] for name in operations}
    return [f"{name}: {' '.join(m.name for m in pkgutil.iter_modules(folders[name]))}" for name in sorted(folders)]
