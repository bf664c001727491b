"""
Tables by a roofline, for a device that nobody has measured: each kernel takes as long as its arithmetic or its memory
traffic does, whichever is longer. An estimate, and marked as one: calibrate it before its answers count.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .files import read_description
from .profiles import write_profile
from .settings import FORBID, Link
from .shape import ModelShape

READY = Path(__file__).with_name("devices.yaml")
TOKENS = (1, 2, 4, 8, *range(16, 257, 16), *range(320, 2049, 64), 4096, 8192)
SEQUENCES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
CHUNKS = (0, 16, 64, 256, 512, 1024, 2048, 4096, 8192)
LENGTHS = (0, 16, 128, 512, 1024, 2048, 4096, 8192, 16384, 32768, 131072)


@dataclass(frozen=True)
class Device:
    """
    Args:
        tflops: of 16-bit matrix products, dense.
        memory_gb: 1e9 bytes.
        memory_tb_per_s: of its memory.
        link: to its neighbours.
        compute_share, memory_share: of these that kernels reach.
        launch_us: what a kernel takes at least.
    """

    __pydantic_config__ = FORBID

    tflops: float
    memory_gb: float
    memory_tb_per_s: float
    link: Link
    compute_share: float = 0.7
    memory_share: float = 0.8
    launch_us: float = 2.0

    def micros(self, operations: float, volume: float) -> float:
        """Microseconds of one kernel with so many operations and bytes."""
        compute = operations / (1e6 * self.tflops * self.compute_share)
        return max(compute, volume / (1e6 * self.memory_tb_per_s * self.memory_share), self.launch_us)


def find_device(name: str, described: Path | None = None) -> Device:
    """
    A device by name.

    Args:
        name: one of `devices.yaml`.
        described: another file of that form.

    Raises:
        ValueError: there is none of that name.
    """
    devices = read_description(described or READY, dict[str, Device])
    if name not in devices:
        raise ValueError(f"no device is called {name!r}; {described or READY.name} has {', '.join(devices)}")
    return devices[name]


def write_roofline(shape: ModelShape, device: Device, name: str, folder: Path, widths: tuple[int, ...] = (1,)) -> None:
    """Writes a profile of `device` for each width."""
    tables: dict[int, dict[str, list[dict[str, Any]]]] = {}
    for tp in widths:
        tables[tp] = {
            "dense": _dense(shape, device, tp),
            "per_sequence": [
                {"layer": "lm_head", "sequences": n, "time_us": _product(device, n, shape.hidden, shape.vocab / tp)}
                for n in SEQUENCES
            ],
            "attention": _attention(shape, device, tp),
        }
        if shape.experts:
            tables[tp]["moe"] = _experts(shape, device)
    write_profile(folder, {"hardware": name, "estimate": True, "tp_degrees": list(widths)}, tables)


def _product(device: Device, rows: float, wide: float, out: float) -> float:
    """A matrix product in 16 bits: its operations, and its weights, input and output once."""
    return device.micros(2 * rows * wide * out, 2 * (wide * out + rows * (wide + out)))


def _dense(shape: ModelShape, device: Device, tp: int) -> list[dict[str, Any]]:
    hidden, heads = shape.hidden, shape.heads * shape.head_dim
    projected = shape.head_dim * (shape.heads + 2 * max(shape.kv_heads, tp)) / tp
    products = {"qkv_proj": (hidden, projected), "o_proj": (heads / tp, hidden)}
    if not shape.experts:
        products |= {
            "gate_up_proj": (hidden, 2 * shape.intermediate / tp),
            "down_proj": (shape.intermediate / tp, hidden),
        }
    rows = [
        {"layer": layer, "tokens": n, "time_us": _product(device, n, *sizes)}
        for layer, sizes in products.items()
        for n in TOKENS
    ]
    # Norms, rotations and activations read and write; they multiply little.
    elementwise = {"embedding": hidden, "layernorm": 2 * hidden, "rotary_emb": heads / tp, "final_layernorm": hidden}
    if not shape.experts:
        elementwise["act_fn"] = 3 * shape.intermediate / tp
    return rows + [
        {"layer": layer, "tokens": n, "time_us": device.micros(0, 2 * 2 * n * numbers)}
        for layer, numbers in elementwise.items()
        for n in TOKENS
    ]


def _attention(shape: ModelShape, device: Device, tp: int) -> list[dict[str, Any]]:
    heads, kv = shape.heads * shape.head_dim / tp, shape.head_dim * max(shape.kv_heads // tp, 1)
    rows = []
    for chunk in CHUNKS:
        for before in LENGTHS if chunk else (0,):
            prefill = 4 * heads * chunk * (before + chunk / 2)
            traffic = 2 * (2 * kv * (before + chunk) + 2 * heads * chunk) if chunk else 0
            for n in (0, *SEQUENCES):
                for length in LENGTHS[1:] if n else (0,):
                    if chunk or n:
                        operations = prefill + 4 * heads * n * length
                        time = device.micros(operations, traffic + 4 * kv * n * length)
                        key = {"prefill_chunk": chunk, "kv_prefill": before, "n_decode": n, "kv_decode": length}
                        rows.append(key | {"time_us": time})
    return rows


def _experts(shape: ModelShape, device: Device) -> list[dict[str, Any]]:
    """An expert's weights are read once each; its products have the rows that were routed to it."""
    counts = sorted({max(1, shape.experts >> shift) for shift in range(shape.experts.bit_length())})
    rows = []
    for tokens in TOKENS:
        operations = 2 * tokens * shape.experts_per_token * shape.mlp_weights
        for experts in counts:
            time = device.micros(operations, 2 * experts * shape.mlp_weights)
            rows.append({"tokens": tokens, "activated_experts": experts, "time_us": time})
    return rows
