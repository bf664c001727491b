"""`hf-infeco bench innerq`, on inputs so short that the numbers only show that everything runs."""

import json

import pytest
from typer.testing import CliRunner

from hf_infeco.cli import app

pytestmark = pytest.mark.usefixtures("one_thread")


def run(*arguments, exit_code=0):
    result = CliRunner().invoke(app, ["bench", "innerq", *map(str, arguments)])
    assert result.exit_code == exit_code, result.output
    return result


def test_quick_measures_every_part_and_leaves_no_progress_behind(tmp_path):
    out = tmp_path / "innerq.json"
    run("--quick", "--out", out)
    results = json.loads(out.read_text())
    assert list(results) == ["bytes", "step", "cached_step", "decode", "recall", "perplexity", "errors"]
    assert all({"device", "commit", "torch", "transformers"} <= set(part["where"]) for part in results.values())
    entries = {part: {entry.get("cache"): entry for entry in results[part]["entries"]} for part in results}
    assert all(entry["rate"] > 0.9 for entry in entries["recall"].values())
    assert {"dense", "default", "base", "small", "hybrid", "KIVI-2"} < set(entries["perplexity"])
    assert abs(entries["perplexity"]["default"]["over_dense"]) < 0.03
    assert entries["errors"]["dense"]["error_by_layer"] == [0, 0, 0, 0]
    assert sum(entries["errors"]["base"]["error_by_layer"]) < sum(entries["errors"]["small"]["error_by_layer"])
    assert list(tmp_path.iterdir()) == [out]


def test_a_part_measured_again_leaves_the_others(tmp_path):
    out = tmp_path / "innerq.json"
    out.write_text(json.dumps({"recall": "kept", "bytes": "replaced"}))
    run("--quick", "--parts", "bytes", "--out", out)
    results = json.loads(out.read_text())
    assert results["recall"] == "kept" and results["bytes"] != "replaced"


def test_an_unknown_part_is_named_before_anything_is_measured(tmp_path):
    result = run("--parts", "bytes,bites", "--out", tmp_path / "innerq.json", exit_code=2)
    assert "No part is called bites" in result.output
    assert not list(tmp_path.iterdir())


def test_a_folder_without_the_model_is_told_the_way_out(tmp_path):
    result = run("--model", tmp_path, exit_code=2)
    assert "no model" in result.output and "--model" in result.output
