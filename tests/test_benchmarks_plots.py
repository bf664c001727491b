"""The pictures show the numbers that they are given."""

import pytest

pytest.importorskip("matplotlib", reason="the extra [bench] is not installed")

from hf_infeco.benchmarks.real.plots import divergence
from hf_infeco.benchmarks.s2o import plots


def lines(axis) -> dict[str, list[tuple[float, float]]]:
    return {line.get_label(): list(zip(*line.get_data())) for line in axis.lines}


def test_errors_are_drawn_over_density_by_rule():
    entries = [
        {"input": "captured", "tokens": tokens, "rule": rule, "density": density, "mse": mse}
        for tokens in (8192, 16384)
        for rule, mse in (("S2O", 1e-6), ("PBS-Attn", 1e-5))
        for density in (0.2, 0.1)
    ]
    figure = plots.errors(entries)
    assert [axis.get_title() for axis in figure.axes] == ["captured, 8,192 tokens", "captured, 16,384 tokens"]
    for axis in figure.axes:
        assert lines(axis) == {"S2O": [(0.1, 1e-6), (0.2, 1e-6)], "PBS-Attn": [(0.1, 1e-5), (0.2, 1e-5)]}


def test_times_are_drawn_over_length_in_the_panel_of_their_input():
    entries = [
        {"input": name, "dtype": dtype, "tokens": tokens, "point": 0.02, "dense_seconds": dense, "s2o_seconds": 1.0}
        for tokens, dense in ((4096, 2.0), (8192, 8.0))
        for name in ("generated", "captured")
        for dtype in ("float32", "bfloat16")
    ]
    figure = plots.times([entry | ({"s2o_seconds": 9.0} if entry["dtype"] == "float32" else {}) for entry in entries])
    assert [axis.get_title() for axis in figure.axes] == ["generated", "captured"]
    for axis in figure.axes:
        assert lines(axis) == {"dense": [(4096, 2.0), (8192, 8.0)], "S2O, error 2 %": [(4096, 1.0), (8192, 1.0)]}


def test_divergence_is_drawn_over_bits_without_the_dense_cache():
    entries = [
        {"way": way, "bits": bits, "kl": kl, "tokens": 4096} for way, bits, kl in (("dense", 16, 0), ("A", 3, 0.1))
    ]
    (axis,) = divergence(entries).axes
    (marks,) = axis.collections
    assert marks.get_offsets().tolist() == [[3, 0.1]]
