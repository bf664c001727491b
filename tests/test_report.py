"""Layer patterns read briefly and never wrongly."""

import pytest

from hf_infeco.patch_report import layer_pattern


@pytest.mark.parametrize(
    "layers, pattern",
    [
        ([], "-"),
        ([3], "3"),
        ([0, 1], "0-1"),
        ([0, 5], "0,5"),
        ([2, 0, 1], "0-2"),
        ([5, 11, 17], "5-17 step 6"),
        ([0, 1, 2, 4, 5, 9], "0-2,4-5,9"),
    ],
)
def test_layer_pattern(layers, pattern):
    assert layer_pattern(layers) == pattern
