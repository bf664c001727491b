"""What the ReMix benchmark reads off its points."""

import pytest

from hf_infeco.benchmarks.remix.curves import forwards_at, paired


def test_forwards_at_an_accuracy_lie_on_the_curve_between_its_points():
    curve = [(2.0, 0.5), (4.0, 0.9), (3.0, 0.7), (8.0, 0.8)]
    assert forwards_at(curve, 0.5) == 2.0
    assert forwards_at(curve, 0.8) == pytest.approx(3.5)
    assert forwards_at(curve, 0.95) is None


def test_equal_answers_differ_by_nothing_and_others_by_what_they_do():
    ours, theirs = {"solved": [1, 1, 1, 0] * 100}, {"solved": [1, 0, 1, 0] * 100}
    assert paired(ours, ours) == {"difference": 0, "half_interval_95": 0}
    measured = paired(ours, theirs)
    assert measured["difference"] == 0.25 and measured["half_interval_95"] == pytest.approx(0.0425, abs=1e-4)
