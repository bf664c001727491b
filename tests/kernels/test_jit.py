"""What the CPU kernels share: compiling where nothing can be kept, and threads that share items."""

import numpy as np
import pytest
import torch

from hf_infeco.kernels.jit import jit, on_threads, take_next


def test_a_function_with_no_place_for_a_cache_is_compiled_all_the_same():
    scope: dict = {}
    exec("def double(x):\n    return x + x", scope)  # a function without a file, which numba refuses to cache
    assert jit()(scope["double"])(21) == 42


@jit()
def count_visits(counter, visits):
    while True:
        item = take_next(counter)
        if item >= len(visits):
            return
        visits[item] += 1


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_every_item_is_taken_exactly_once(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        visits = np.zeros(100_000, np.int64)
        on_threads(count_visits, (visits,), threads)
        assert (visits == 1).all()
    finally:
        torch.set_num_threads(before)
