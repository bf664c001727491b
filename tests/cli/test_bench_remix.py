"""`hf-infeco bench remix`, on so few puzzles that the numbers only show that everything runs."""

import json

import pytest
from typer.testing import CliRunner

from hf_infeco.benchmarks.remix.curves import forwards_at, paired
from hf_infeco.benchmarks.remix.report import TABLES, blocks
from hf_infeco.cli import app

pytestmark = pytest.mark.usefixtures("one_thread")


def run(*arguments, exit_code=0):
    result = CliRunner().invoke(app, ["bench", "remix", *map(str, arguments)])
    assert result.exit_code == exit_code, result.output
    return result


def test_quick_measures_every_part_and_the_tables_show_it(tmp_path):
    out = tmp_path / "remix.json"
    run("--quick", "--parts", "curves,hard,ablations,forwards,answers,masks", "--out", out)
    results = json.loads(out.read_text())
    assert list(results) == ["curves", "hard", "ablations", "forwards", "answers", "masks"]
    assert all({"device", "commit", "torch", "transformers"} <= set(part["where"]) for part in results.values())
    points = {entry["point"]: entry for entry in results["curves"]["entries"] if entry["task"] == "sudoku"}
    assert points["one"]["forwards"] == 16 and points["top_k 2"]["forwards"] == 8
    assert points["one"]["over_one"]["difference"] == 0
    assert set(blocks(results)) == set(TABLES)
    assert list(tmp_path.iterdir()) == [out]


def test_an_unknown_part_and_a_folder_without_a_model_are_named(tmp_path):
    assert "No part is called curve" in run("--parts", "curve", exit_code=2).output
    assert "no model" in run("--model", tmp_path, exit_code=2).output


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
