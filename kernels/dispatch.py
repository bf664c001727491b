"""Which backend runs an operation: the first of the operation's list that fits the device and can be imported."""

import functools
import importlib
import os
from types import ModuleType
from typing import Any, NamedTuple

import torch

VARIABLE = "HF_INFECO_BACKEND"  # names the one backend to use, where the operation has it

# Backend, which is also the name of its file: types of device that it runs on; None for all.
DEVICES: dict[str, tuple[str, ...] | None] = {"triton": ("cuda",), "cpu": ("cpu",), "reference": None}

# Operation: its folder, and its backends, fastest first. The last one runs everywhere.
OPERATIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "innerq_decode": ("innerq", ("triton", "cpu", "reference")),
    "innerq_quantize": ("innerq", ("triton", "cpu", "reference")),
    "innerq_dequantize": ("innerq", ("cpu", "reference")),
    "s2o_prefill": ("s2o", ("triton", "cpu", "reference")),
    "static_constrain": ("static", ("triton", "cpu", "reference")),
}


class Choice(NamedTuple):
    """
    The backend that runs an operation.

    Attributes:
        backend (`str`): its name.
        module (`ModuleType`): holds the operation's functions; every backend's have the same signatures.
        refused (`dict[str, str]`): why each faster backend does not run, as sentences without their full stop.
    """

    backend: str
    module: Any
    refused: dict[str, str]


def choose(operation: str, device: torch.device) -> Choice:
    """
    The backend for an operation of `OPERATIONS` on tensors of `device`.

    Raises:
        ValueError: if the environment variable `HF_INFECO_BACKEND` names no backend, or one that cannot run here. An
            operation that does not have the named backend is not affected.
    """
    return _choose(operation, device.type, os.environ.get(VARIABLE, ""))


@functools.cache
def _choose(operation: str, device: str, forced: str) -> Choice:
    folder, backends = OPERATIONS[operation]
    if forced and forced not in DEVICES:
        raise ValueError(f"{VARIABLE}={forced} is no backend: use one of {list(DEVICES)}, or unset it.")
    refused: dict[str, str] = {}
    for backend in backends:
        if forced in backends and backend != forced:
            refused[backend] = f"{VARIABLE}={forced} asks for another one"
            continue
        module, reason = _load(folder, backend, device)
        if module is not None:
            return Choice(backend, module, refused)
        refused[backend] = reason
    raise ValueError(f"{VARIABLE}={forced} cannot run {operation} on {device}: {refused[forced]}. Unset {VARIABLE}.")


def _load(folder: str, backend: str, device: str) -> tuple[ModuleType | None, str]:
    """A backend's module, or None and why it cannot run."""
    devices = DEVICES[backend]
    if devices is not None and device not in devices:
        return None, f"it runs on {' and '.join(devices)}, and the tensors are on {device}"
    try:
        return importlib.import_module(f".{folder}.{backend}", __package__), ""
    except ImportError as error:
        return None, f"it cannot be imported ({error})"
