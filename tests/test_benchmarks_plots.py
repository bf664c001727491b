"""The pictures show the numbers that they are given."""

import pytest
import torch

pytest.importorskip("matplotlib", reason="the extra [bench] is not installed")

from hf_infeco.benchmarks.s2o import plots
from hf_infeco.benchmarks.s2o.inputs import generated
from hf_infeco.benchmarks.s2o.rules import RULES


def lines(axis) -> dict[str, list[tuple[float, float]]]:
    return {line.get_label(): list(zip(*line.get_data())) for line in axis.lines}


def test_the_picture_of_visits_has_a_panel_per_head_that_shows_its_record():
    record = torch.rand(3, 4, 20, generator=torch.Generator().manual_seed(0)) < 0.5
    figure = plots.visits({"first": record, "second": ~record})
    shown = [torch.tensor(axis.images[0].get_array().astype(bool)) for axis in figure.axes]
    assert torch.equal(torch.stack(shown), torch.cat([record, ~record]))


def test_what_a_rule_visits_is_shown_without_the_future():
    visited = plots.rule_visits(RULES["block top-k"], generated(1024, 64, seed=0))
    assert visited.shape == (8, 1024 // 128, 1024 // plots.GRANULE)
    first_granules = torch.arange(128) * plots.GRANULE
    last_rows = torch.arange(128, 1025, 128) - 1
    assert not visited[:, first_granules > last_rows[:, None]].any()
    assert visited[:, :, 0].all()


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


def test_times_are_drawn_over_length_in_the_panel_of_their_input_and_dtype():
    entries = [
        {"input": name, "dtype": dtype, "tokens": tokens, "point": 0.02, "dense_seconds": dense, "s2o_seconds": 1.0}
        for tokens, dense in ((4096, 2.0), (8192, 8.0))
        for name in ("generated", "captured")
        for dtype in ("float32", "bfloat16")
    ]
    figure = plots.times(entries)
    titles = ["generated, float32", "captured, float32", "generated, bfloat16", "captured, bfloat16"]
    assert [axis.get_title() for axis in figure.axes] == titles
    for axis in figure.axes:
        assert lines(axis) == {"dense": [(4096, 2.0), (8192, 8.0)], "S2O, error 2 %": [(4096, 1.0), (8192, 1.0)]}
