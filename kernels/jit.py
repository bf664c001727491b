"""What the CPU kernels share: numba's compiler, and threads that divide items among themselves."""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

# Of "fast", what sums need: -inf hides keys, and a NaN must stay one.
SUMS = {"contract", "reassoc", "nsz"}


def jit(fastmath: set[str] | bool = False) -> Callable:
    """numba's compiler: without the interpreter lock, and kept on disk where there is a place to write to."""
    options: dict[str, Any] = {"nogil": True, "fastmath": fastmath, "error_model": "numpy"}

    def compiled(function: Callable) -> Callable:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # neither beside this file nor in the user's cache folder
            return numba.njit(**options)(function)

    return compiled


@jit(SUMS)
def exp(x):
    """exp of a float32 up to 88, to about 1e-7; a polynomial, since the library's is not vectorized."""
    low = np.float32(-87.0)
    clamped = low if x < low else x
    power = np.floor(clamped * np.float32(1.44269504) + np.float32(0.5))  # x = power * ln(2) + rest
    rest = clamped - power * np.float32(0.693359375) + power * np.float32(2.12194440e-4)
    series = np.float32(1.9875691500e-4)
    for factor in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        series = series * rest + np.float32(factor)
    series = series * rest * rest + rest + np.float32(1.0)
    return np.float32(0.0) if x < low else series * np.int32((np.int32(power) + 127) << 23).view(np.float32)


@intrinsic
def take_next(typing, counter):
    """Adds one to `counter[0]` in one step and returns what it was."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", data, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(counter), codegen


@functools.cache
def _pool() -> ThreadPoolExecutor:
    # Not numba's own threads: on GNU OpenMP they die in a forked child, on the portable layer with a second caller.
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="hf_infeco")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has none of its parent's threads


def on_threads(kernel: Callable, args: tuple, max_threads: int) -> None:
    """
    Runs `kernel(counter, *args)` on up to torch's number of threads. Each takes items with `take_next(counter)` until
    there are none left, so that a thread which is held up leaves its share to the others.
    """
    counter = np.zeros(1, np.int64)
    threads = max(1, min(torch.get_num_threads(), max_threads))
    futures = [_pool().submit(kernel, counter, *args) for _ in range(threads - 1)]
    kernel(counter, *args)
    for future in futures:
        future.result()


def map_on_threads(function: Callable, items: list) -> list:
    """
    `[function(item) for item in items]` on torch's number of threads, for functions that call torch: each torch
    operation inside stays on its own thread, so that small ones need not wait for one another.
    """
    threads = min(torch.get_num_threads(), len(items))
    if threads <= 1:
        return [function(item) for item in items]
    results: list[Any] = [None] * len(items)
    numbers = iter(range(len(items)))  # next() of a range is one step for the interpreter
    inference = torch.is_inference_mode_enabled()

    def work() -> None:
        torch.set_num_threads(1)  # of this thread
        with torch.inference_mode(inference), torch.no_grad():
            for number in numbers:
                results[number] = function(items[number])

    before = torch.get_num_threads()
    try:
        for future in [_pool().submit(work) for _ in range(threads)]:
            future.result()
    finally:
        torch.set_num_threads(before)  # a worker's number is also what threads yet to come would start with
    return results
