"""
Compiles the Triton kernels for GPUs that need not be there, and weighs what a program of each takes.

`python -m hf_infeco.kernels.aot` prints a line per compiled kernel, for all targets or for those named behind it, and
fails where one spills registers or takes more shared memory than a block may have. It needs triton and no GPU. Nothing
is declared twice: `example_calls()` of each `<op>/triton.py` makes our own calls on tensors without data, and what
those would launch is compiled.
"""

import importlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

# What to compile for, and how many bytes of shared memory a block may take there, from the vendors' tables.
TARGETS = {
    "sm_80": (GPUTarget("cuda", 80, 32), 163 * 1024),
    "sm_90": (GPUTarget("cuda", 90, 32), 227 * 1024),
    "sm_100": (GPUTarget("cuda", 100, 32), 227 * 1024),
    "gfx942": (GPUTarget("hip", "gfx942", 64), 64 * 1024),
}


class Resources(NamedTuple):
    """
    What one program of a compiled kernel takes.

    Attributes:
        kernel (`str`), variant (`str`), target (`str`): its name, its compile-time arguments, and the GPU.
        registers (`int`): per thread.
        shared (`int`), shared_limit (`int`): bytes per block.
        spills (`int`): bytes of memory per thread (stack, scratch). The kernels have no local arrays: only registers
            that did not fit go there.
    """

    kernel: str
    variant: str
    target: str
    registers: int
    shared: int
    shared_limit: int
    spills: int

    @property
    def fits(self) -> bool:
        return self.shared <= self.shared_limit and self.spills == 0


def main(targets: list[str]) -> int:
    fits = True
    print(f"{'kernel':24} {'target':7} {'regs':>4} {'shared':>6} {'limit':>6} {'spills':>6}  variant")
    for found in survey(targets or list(TARGETS)):
        fits &= found.fits
        print(
            f"{found.kernel:24} {found.target:7} {found.registers:4} {found.shared:6} {found.shared_limit:6} "
            f"{found.spills:6}  {found.variant}{'' if found.fits else '  <- over the limit'}",
            flush=True,
        )
    return 0 if fits else 1


def survey(targets: list[str]) -> Iterator[Resources]:
    """The resources of every kernel that the example calls launch, on each of `targets` (keys of TARGETS)."""
    if unknown := sorted(set(targets) - set(TARGETS)):
        raise ValueError(f"There is no target {', '.join(unknown)}: choose from {', '.join(TARGETS)}.")
    if knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET=1 leaves nothing to compile: unset it before triton is imported.")
    for path in sorted(Path(__file__).parent.glob("*/triton.py")):
        module = importlib.import_module(f"{__package__}.{path.parent.name}.triton")
        for target in targets:
            for kernel in _compile(module.example_calls, TARGETS[target][0]):
                yield _weigh(kernel, target)


class AbsentDevice:
    """The driver of a GPU that is not here: Triton asks it what to compile for. It is also the current device."""

    def __init__(self, target: GPUTarget):
        self.get_current_target = lambda: target
        # Triton keeps the kernels of each device apart by this key.
        self.get_current_device = lambda: target
        self.get_current_stream = lambda device: 0


def _compile(example_calls: Callable[[], None], target: GPUTarget) -> list[Any]:
    """Makes the calls with every launch replaced by its compilation; each compiled kernel once."""
    compiled = {}
    launch = JITFunction.run

    def compile_only(self: JITFunction, *args: Any, warmup: bool, **kwargs: Any) -> None:
        kernel = launch(self, *args, warmup=True, **kwargs)
        compiled[kernel.hash] = kernel

    driver.set_active(AbsentDevice(target))
    with mock.patch.object(JITFunction, "run", compile_only):
        example_calls()
    return list(compiled.values())


def _weigh(kernel: Any, target: str) -> Resources:
    names = kernel.src.fn.arg_names
    constants = {names[index]: value for (index,), value in kernel.src.constants.items()}
    variant = [f"{name}={value}" for name, value in constants.items() if name.isupper()]
    variant += [f"no {name}" for name, value in constants.items() if value is None]
    variant.append(f"warps={kernel.metadata.num_warps}")
    device, shared_limit = TARGETS[target]
    registers, spills = (_cuda_registers if device.backend == "cuda" else _hip_registers)(kernel.asm)
    shared = kernel.metadata.shared
    return Resources(kernel.metadata.name, ", ".join(variant), target, registers, shared, shared_limit, spills)


def _cuda_registers(asm: dict[str, Any]) -> tuple[int, int]:
    """Registers, and bytes of stack per thread."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump reports no registers: {usage!r}. Does this triton write another format?")
    return int(found[1]), int(found[2])


def _hip_registers(asm: dict[str, Any]) -> tuple[int, int]:
    """Vector registers, accumulation ones included, and bytes of scratch memory per thread."""

    def count(field: str) -> int:
        found = re.search(rf"\.{field}:\s+(\d+)", asm["amdgcn"])
        if found is None:
            raise RuntimeError(f"The AMD assembly names no {field}. Does this triton write another format?")
        return int(found[1])

    return count("vgpr_count"), count("private_segment_fixed_size")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
