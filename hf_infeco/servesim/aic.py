"""
Tables out of AIConfigurator's database (`aiconfigurator-core`, Apache-2.0): measured kernels of many NVIDIA devices.

Its operations are summed by what they depend on: attention, the head, and what sees each token. Its all-reduces are
left out, for they are those of another machine's links. Steps with a prompt and decoding are the sum of the two.
"""

import json
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .profiles import with_sums, write_profile
from .shape import ModelShape

TOKENS = (1, 2, 4, 8, *range(16, 257, 16), *range(320, 1025, 64), *range(1280, 2049, 256), 4096, 8192)
SEQUENCES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CHUNKS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
PREFIXES = (0, 512, 1024, 2048, 4096, 8192, 16384)
LENGTHS = (16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
DECODING = 256  # up to so many tokens its decode operations are asked for what sees each token
ON_LINKS = ("_ar", "_ar_1", "_ar_2", "_p2p")
Operations = Iterable[tuple[Any, ...]]  # name, ms, energy, source


def write_aic(model: str, system: str, folder: Path, widths: tuple[int, ...] = (1,), backend: str = "vllm") -> None:
    """
    Writes a profile of a device of the database.

    Args:
        model: its name on the Hub; the database must know it.
        system: such as `h100_sxm` or `rtx_pro_6000_server`.
        folder: of the profile.
        widths: tensor parallel widths.
        backend: whose kernels; `vllm`, `sglang` or `trtllm`.

    Raises:
        ModuleNotFoundError: without the extra `aic`.
        ValueError: the database knows no such model.
    """
    from aiconfigurator_core.sdk.engine import EngineHandle

    layers = _shape(model).layers
    tables = {}
    for width in widths:
        engine = EngineHandle.compile(model, system, backend, tp_size=width)
        tables[width] = _tables(engine, layers, f"{system}, tp{width}")
    about = {"gpu": system, "model": model, "backend": backend, "tp_degrees": list(widths)}
    write_profile(folder, {**about, "source": "aiconfigurator-core"}, tables)


def _shape(model: str) -> ModelShape:
    path = files("aiconfigurator_core").joinpath("model_configs", f"{model.replace('/', '--')}_config.json")
    if not path.is_file():
        raise ValueError(f"aiconfigurator-core has no model {model!r}; its names are those of the Hub")
    return ModelShape.from_config(json.loads(path.read_text("utf-8")))


def _tables(engine: Any, layers: int, title: str) -> dict[str, list[dict[str, Any]]]:
    dense, head = [], []
    for tokens in tqdm(TOKENS, desc=title):
        rest = _sums(_decode(engine, tokens, 1024) if tokens <= DECODING else _prefill(engine, tokens, 0))[1]
        dense.append({"layer": "all", "tokens": tokens, "time_us": rest / layers})
    for count in SEQUENCES:
        head.append({"layer": "lm_head", "sequences": count, "time_us": _sums(_decode(engine, count, 1024))[2]})
    attention = {
        (chunk, prefix, 0, 0): 1e-6 * _sums(_prefill(engine, chunk, prefix))[0] / layers
        for chunk in CHUNKS
        for prefix in PREFIXES
    }
    attention |= {
        (0, 0, count, length): 1e-6 * _sums(_decode(engine, count, length))[0] / layers
        for count in SEQUENCES
        for length in LENGTHS
    }
    return {"dense": dense, "per_sequence": head, "attention": with_sums(attention)}


def _decode(engine: Any, count: int, length: int) -> Operations:
    return engine.decode_step_per_op(count, length, 2)


def _prefill(engine: Any, chunk: int, prefix: int) -> Operations:
    return engine.run_static_per_op(batch_size=1, isl=prefix + chunk, osl=2, prefix=prefix, mode="static_ctx")[0]


def _sums(operations: Operations) -> tuple[float, float, float]:
    """Microseconds of attention, of what sees each token on its device, and of the head."""
    attention = rest = head = 0.0
    for name, milliseconds, *_ in operations:
        if name.endswith("attention"):
            attention += 1e3 * milliseconds
        elif "logits" in name:
            head += 1e3 * milliseconds
        elif not name.endswith(ON_LINKS):
            rest += 1e3 * milliseconds
    return attention, rest, head
