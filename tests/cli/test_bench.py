"""`hf-infeco bench`, on inputs so short that the numbers only show that everything runs."""

import json

import pytest
from typer.testing import CliRunner

from hf_infeco.benchmarks.s2o.rules import RULES
from hf_infeco.cli import app

pytestmark = pytest.mark.usefixtures("one_thread")


def run(*arguments, exit_code=0):
    result = CliRunner().invoke(app, ["bench", "s2o", *map(str, arguments)])
    assert result.exit_code == exit_code, result.output
    return result


def test_quick_measures_every_part_and_draws_the_results(tmp_path):
    pytest.importorskip("matplotlib", reason="the extra [bench] is not installed")
    out = tmp_path / "s2o.json"
    output = run("--quick", "--plot", "--out", out).stdout
    written = [line.removeprefix("wrote ") for line in output.splitlines() if line.startswith("wrote ")]
    pictures = [str(tmp_path / f"s2o_{name}.png") for name in ("visits", "errors", "times")]
    assert written == [str(out), *pictures] and sorted(tmp_path.iterdir()) == sorted(map(type(out), written))

    results = json.loads(out.read_text())
    assert list(results) == ["speed", "short", "error", "rules", "recall", "perplexity"]
    assert all({"device", "commit", "torch", "transformers"} <= set(part["where"]) for part in results.values())
    entries = {part: results[part]["entries"] for part in results}
    for entry in entries["speed"]:
        assert entry["error"] < 3 * entry["point"] and entry["s2o_seconds"] > 0
    assert len({entry["input"] for entry in entries["error"]}) == 3
    # So many needles in one block of keys are more than its odd keys: docs/s2o.md, Limits.
    assert all(entry["found"] > 0.8 * entry["needles"] for entry in entries["error"] if "needles" in entry)
    assert entries["error"][-1]["error"] < 0.05
    assert {entry["attention"] for entry in entries["recall"]} == {"dense", "S2O"}
    assert all(entry["correct"] > 0.9 * entry["total"] for entry in entries["recall"])
    dense, sparse = (entry["perplexity"] for entry in entries["perplexity"])
    assert sparse == pytest.approx(dense, rel=0.02)

    compared = entries["rules"]
    for index, entry in enumerate(compared):
        if entry["rule"] == "S2O":
            peers = compared[index + 1 : index + 2 + len(RULES)]
            assert [peer["rule"] for peer in peers] == ["S2O without means", *RULES]
            assert all(peer["density"] >= entry["density"] for peer in peers)


def test_a_part_measured_again_leaves_the_others(tmp_path):
    out = tmp_path / "s2o.json"
    out.write_text(json.dumps({"recall": "kept", "perplexity": "replaced"}))
    run("--quick", "--parts", "perplexity", "--out", out)
    results = json.loads(out.read_text())
    assert results["recall"] == "kept" and results["perplexity"] != "replaced"


def test_an_unknown_part_is_named_before_anything_is_measured(tmp_path):
    result = run("--parts", "speed,sped", "--out", tmp_path / "s2o.json", exit_code=2)
    assert "No part is called sped" in result.output
    assert not list(tmp_path.iterdir())


def test_a_folder_without_the_model_is_told_the_way_out(tmp_path):
    result = run("--model", tmp_path, exit_code=2)
    assert "no model" in result.output and "--model" in result.output
