"""`hf-infeco bench static`, on catalogues so small that the numbers only show that everything runs."""

import json

import pytest
from typer.testing import CliRunner

from hf_infeco.benchmarks.static.report import TABLES, blocks
from hf_infeco.cli import app

pytestmark = pytest.mark.usefixtures("one_thread")


def run(*arguments, exit_code=0):
    result = CliRunner().invoke(app, ["bench", "static", *map(str, arguments)])
    assert result.exit_code == exit_code, result.output
    return result


def test_quick_measures_every_part_and_the_tables_show_it(tmp_path):
    out = tmp_path / "static.json"
    assert run("--quick", "--out", out).stdout.splitlines()[-1] == f"wrote {out}"
    results = json.loads(out.read_text())
    assert list(results) == ["step", "wide", "nodes", "catalogues", "baselines", "search", "build", "validity"]
    assert all({"device", "commit", "torch", "transformers"} <= set(part["where"]) for part in results.values())
    assert list(results["step"]["milliseconds_by_depth"]) == ["1000", "10000"]
    assert list(results["nodes"]["times_one_fill"]) == ["512", "2048"]
    assert results["catalogues"]["titles"]["items"] == 300 and results["catalogues"]["Zipf"]["length"] == 8
    assert {"sorted array", "dict"} <= set(results["baselines"]["times_ours_by_depth"])
    assert results["search"]["same_sequences"]
    assert results["build"]["peak_megabytes"] >= results["build"]["peak_megabytes_before"] > 0
    counts = results["validity"]
    assert counts["beams"] == counts["members"] == counts["same_as_transformers"] == 4 * 16 * 3
    assert set(TABLES) < set(blocks(results))
    assert list(tmp_path.iterdir()) == [out]


def test_a_part_measured_again_leaves_the_others(tmp_path):
    out = tmp_path / "static.json"
    out.write_text(json.dumps({"step": "kept", "validity": "replaced"}))
    run("--quick", "--parts", "validity", "--out", out)
    results = json.loads(out.read_text())
    assert results["step"] == "kept" and results["validity"] != "replaced"


def test_an_unknown_part_is_named_before_anything_is_measured(tmp_path):
    result = run("--parts", "step,steps", "--out", tmp_path / "static.json", exit_code=2)
    assert "No part is called steps" in result.output
    assert not list(tmp_path.iterdir())
