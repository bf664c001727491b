"""
One layer's decode attention: SDPA on the dense cache, InnerQ and KIVI's grouping on packed tokens; the same with the
cache's own work against transformers' QuantizedCache; and what share of the memory's bandwidth is reached.

8 KV heads of 128 dimensions. The dense time is that of the faster of two calls: as transformers asks for it, and with
the query heads of a KV head as rows of one problem, which is the same where there is one query.
"""

from collections.abc import Callable
from time import perf_counter

import torch
import torch.nn.functional as F
from tqdm import tqdm

from hf_infeco import InnerQConfig
from hf_infeco.innerq.layer import InnerQLayer

from ..measuring import median_seconds
from . import kivi
from .caches import MAIN, SETTINGS, WINDOWS, filled
from .sizes import HEAD_DIM, KV_HEADS, config, nbytes, quantized_caches, tokens

# (batch, tokens): ratios of query heads to KV heads
CELLS = {
    **{(1, 2**power): (4,) for power in (12, 13, 14, 16)},
    (1, 32768): (1, 4, 8),
    (1, 131072): (4,),
    (8, 4096): (1, 4, 8),
    (8, 8192): (4,),
}
REPEATS = 7
READ_BYTES = 2**29
SCALE = HEAD_DIM**-0.5
CPU = torch.device("cpu")


@torch.no_grad()
def measure_step(cells: dict[tuple[int, int], tuple[int, ...]] = CELLS, repeats: int = REPEATS) -> list[dict]:
    """One entry per batch, length, ratio and way to attend."""
    bandwidth = read_bandwidth()
    entries = []
    for (batch, seq_len), ratios in tqdm(cells.items(), desc="decode attention", unit="length"):
        key, value = tokens(seq_len, batch=batch)
        layers = {name: _filled_layer(settings, key, value) for name, settings in SETTINGS.items()}
        windows, outer = _split(key, value)
        wide = key.float(), value.float()
        moved = {name: sum(tensor.nbytes for tensor in layer.state().values()) for name, layer in layers.items()}
        moved |= {"bf16": 2 * key.nbytes, "fp32": 4 * key.nbytes, "KIVI-2": _bytes([*outer, *sum(windows, ())])}
        for ratio in ratios:
            query = torch.randn(batch, KV_HEADS * ratio, 1, HEAD_DIM, generator=torch.Generator().manual_seed(1))
            half = query.bfloat16()
            runs: dict[str, Callable] = {
                **_dense_runs("bf16", half, key, value),
                **_dense_runs("fp32", query, *wide),
                **{name: _packed_run(layer, half) for name, layer in layers.items()},
                "KIVI-2": lambda half=half, outer=outer, windows=windows: kivi.attend(half, outer, windows, SCALE),
            }
            for run in runs.values():
                run()
            taken = median_seconds(CPU, runs, repeats)
            seconds = {name: time for name, time in taken.items() if name in moved}
            for dtype in ("bf16", "fp32"):
                seconds[dtype] = min(taken[f"{dtype} by heads"], taken[f"{dtype} by rows"])
            cell = {"batch": batch, "tokens": seq_len, "ratio": ratio}
            entries += [
                cell
                | {"attention": name, "seconds": seconds[name], "bytes": moved[name]}
                | {"over_bf16": seconds["bf16"] / seconds[name], "over_fp32": seconds["fp32"] / seconds[name]}
                | {"over_kivi": seconds["KIVI-2"] / seconds[name]}
                | {"of_bandwidth": moved[name] / seconds[name] / bandwidth}
                for name in (*SETTINGS, "KIVI-2", "bf16", "fp32")
            ]
    return entries


def read_bandwidth(repeats: int = 5) -> float:
    """Bytes per second that torch's threads read, the best of a few sums over memory that no cache level holds."""
    data = torch.ones(READ_BYTES // 4)
    best = 0.0
    for _ in range(repeats):
        start = perf_counter()
        data.sum()
        best = max(best, READ_BYTES / (perf_counter() - start))
    return best


def _bytes(tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _filled_layer(settings: InnerQConfig, key: torch.Tensor, value: torch.Tensor) -> InnerQLayer:
    layer = InnerQLayer(settings)
    layer.update(key, value)
    return layer


def _split(key: torch.Tensor, value: torch.Tensor):
    """Sinks and recent tokens, as many as InnerQ keeps exact, and what lies between in KIVI's layout."""
    end = key.shape[2] - WINDOWS["recent"]
    windows = [(key[:, :, part], value[:, :, part]) for part in (slice(WINDOWS["sink"]), slice(end, None))]
    windows = [(each.contiguous(), other.contiguous()) for each, other in windows]
    middle = slice(WINDOWS["sink"], end)
    return windows, kivi.pack(key[:, :, middle], value[:, :, middle])


def _dense_runs(dtype: str, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> dict[str, Callable]:
    rows = query.view(query.shape[0], KV_HEADS, -1, HEAD_DIM)
    return {
        f"{dtype} by heads": lambda: F.scaled_dot_product_attention(query, key, value, scale=SCALE, enable_gqa=True),
        f"{dtype} by rows": lambda: F.scaled_dot_product_attention(rows, key, value, scale=SCALE),
    }


def _packed_run(layer: InnerQLayer, query: torch.Tensor) -> Callable:
    new = torch.zeros(*query.shape[:1], KV_HEADS, 0, HEAD_DIM, dtype=query.dtype)
    key, _ = layer.update(new, new)  # of no tokens: all that the layer holds, as a model's attention is given it
    return lambda: key.view_of.attend(query, SCALE, None)


@torch.no_grad()
def measure_cached_step(seq_len: int = 8192, ratio: int = 4, repeats: int = REPEATS) -> list[dict]:
    """Appending one token and attending all, at `seq_len` tokens: what a layer does in one step of decoding."""
    exact = [tokens(seq_len)]
    query = torch.randn(1, KV_HEADS * ratio, 1, HEAD_DIM, generator=torch.Generator().manual_seed(1)).bfloat16()
    new = tokens(1, seed=2)
    makers = MAIN | quantized_caches()
    caches = {name: filled(make, config(KV_HEADS * ratio), exact) for name, make in makers.items()}

    def step(cache):
        key, value = cache.update(*new, 0)
        if isinstance(cache.layers[0], InnerQLayer):
            return key.view_of.attend(query, SCALE, None)
        return F.scaled_dot_product_attention(query, key, value, scale=SCALE, enable_gqa=True)

    runs: dict[str, Callable] = {name: lambda cache=cache: step(cache) for name, cache in caches.items()}
    for run in runs.values():
        run()
    seconds = median_seconds(CPU, runs, repeats)
    return [
        {
            "cache": name,
            "tokens": seq_len,
            "seconds": seconds[name],
            "bytes": nbytes(caches[name]),
            "over": {peer: seconds[peer] / seconds[name] for peer in seconds if peer not in SETTINGS},
        }
        for name in caches
    ]
