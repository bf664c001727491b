"""The commands as a user runs them, calibration, planning and profiling; the core imports fast and without torch."""

import csv
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from hf_infeco.cli import app
from hf_infeco.servesim import Cluster, Correction, Link, read_trace, simulate, write_trace
from hf_infeco.servesim.calibrate import calibrate
from hf_infeco.servesim.generators import poisson
from hf_infeco.servesim.logs import read_log
from hf_infeco.servesim.plan import Patch, Plan, Promise, layouts, make_plan, read_plan
from hf_infeco.servesim.roofline import find_device, write_roofline
from hf_infeco.servesim.tables import read_meta, read_tables

from .profiles import SHAPE, instance, tables

IMPORT = """
import sys, time
start = time.process_time()
import hf_infeco.servesim
seconds = time.process_time() - start
assert not {"torch", "transformers", "pydantic", "yaml", "matplotlib"} & set(sys.modules)
print(seconds)
"""


def run(*arguments, exit_code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == exit_code, result.output
    return result.output


@pytest.fixture
def cluster_file(tmp_path):
    """A roofline's profile, its model, a trace of 120 requests, and a cluster of one instance."""
    given = instance(tmp_path)
    write_roofline(SHAPE, find_device("L40S"), "L40S", tmp_path / "profile", (1, 2))
    write_trace(poisson(300.0, 120, 60, 20, seed=4), tmp_path / "trace.jsonl")
    described = {"model": given.model, "profile": "profile", "kv_blocks": 200, "scheduler": {"max_num_seqs": 8}}
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump({"instances": [described]}))
    return path


def test_the_core_imports_in_less_than_three_tenths_of_a_second_and_without_torch(tmp_path):
    taken = []
    for _ in range(4):
        done = subprocess.run([sys.executable, "-c", IMPORT], cwd=tmp_path, capture_output=True, text=True, check=True)
        taken.append(float(done.stdout))
        if taken[-1] < 0.3:
            break
    assert min(taken) < 0.3


def test_simulate_writes_a_row_a_request_a_summary_and_a_picture(cluster_file, tmp_path):
    out = tmp_path / "out"
    shown = run("simulate", "--cluster", cluster_file, "--trace", tmp_path / "trace.jsonl", "--out", out, "--plot")
    assert "120 requests" in shown and "tables: estimated by a roofline, L40S" in shown and "no error band" in shown
    with (out / "requests.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(int(row["request"]) for row in rows) == list(range(120))
    summary = json.loads((out / "summary.json").read_text())
    waits = [float(row["first_token_s"]) - float(row["arrival_s"]) for row in rows]
    assert summary["ttft"]["mean"] == pytest.approx(np.mean(waits), abs=2e-6)
    assert (out / "distributions.svg").stat().st_size > 1000


def test_the_csv_that_simulate_writes_is_a_trace_again(cluster_file, tmp_path):
    trace, rows = tmp_path / "trace.jsonl", tmp_path / "out" / "requests.csv"
    run("simulate", "--cluster", cluster_file, "--trace", trace, "--out", tmp_path / "out")
    with rows.open() as file:
        written = [float(row["arrival_s"]) for row in csv.DictReader(file)]
    assert written != sorted(written)  # rows come as requests end
    lengths = [
        [(r.input_tokens, r.output_tokens) for r in read_trace(path, source=source)]
        for path, source in ((trace, "native"), (rows, "rows"))
    ]
    assert lengths[0] == lengths[1]
    assert "120 requests" in run("simulate", "--cluster", cluster_file, "--trace", rows, "--source", "rows")


def test_a_wrong_cluster_ends_the_command_with_its_line(cluster_file, tmp_path):
    cluster_file.write_text(cluster_file.read_text().replace("kv_blocks", "kv_block"))
    shown = run("simulate", "--cluster", cluster_file, "--trace", tmp_path / "trace.jsonl", exit_code=1)
    assert "cluster.yaml:2: unknown field instances.0.kv_block" in shown


def test_calibrate_stores_the_fit_and_later_answers_show_its_band(cluster_file, tmp_path):
    trace, log = tmp_path / "trace.jsonl", tmp_path / "out" / "requests.csv"
    run("simulate", "--cluster", cluster_file, "--trace", trace, "--out", tmp_path / "out")
    shown = run("calibrate", "--log", log, "--cluster", cluster_file, "--first", 60)
    assert "fitted: prefill 1," in shown and "error on 60 others" in shown
    assert read_meta(tmp_path / "profile")["calibration"]["tp1"]["held_out"]["requests"] == 60
    assert "error on 60 requests that calibration had not seen: TTFT +0.0 %" in run(
        "simulate", "--cluster", cluster_file, "--trace", trace
    )


def test_calibration_finds_the_factors_of_an_engine_that_has_them(tmp_path):
    """The log is a simulation with other factors; the fit sees 60 of its 160 requests."""
    given = instance(tmp_path, kv_blocks=400)
    true = Correction(prefill=1.12, decode=1.08)
    requests = list(poisson(12.0, 160, 60, 25, seed=2))
    rows = tmp_path / "rows.csv"
    simulate(Cluster((given,)), requests, tables=lambda *_: tables(true), rows=rows)
    write_plain_profile(tmp_path / "profile")
    found, held_out = calibrate(
        Cluster((replace(given, profile=str(tmp_path / "profile")),)), read_log(rows), 60, ["prefill", "decode"]
    )
    assert found.decode == pytest.approx(true.decode, abs=0.02) and found.prefill == pytest.approx(
        true.prefill, abs=0.05
    )
    assert abs(held_out["tpot"]["mean"]) < 2


def test_a_log_whose_first_requests_all_meet_a_cold_engine_is_refused(tmp_path):
    """Nothing has come out before the hundredth request arrives."""
    write_plain_profile(tmp_path / "profile")
    given = instance(tmp_path, profile=str(tmp_path / "profile"))
    rows = [f"{0.01 * i},{2.0 + 0.01 * i},{3.0 + 0.01 * i},20,5" for i in range(100)]
    log = tmp_path / "log.csv"
    log.write_text("\n".join(["arrival_s,first_token_s,last_token_s,input_tokens,output_tokens", *rows]))
    with pytest.raises(ValueError, match="all of the first 60 requests arrive before the log's first token"):
        calibrate(Cluster((given,)), read_log(log), 60)


@pytest.mark.parametrize(("longer", "told"), [(range(60, 100), "requests that are fitted"), (range(60), "held out")])
def test_a_log_without_a_time_per_token_is_refused(tmp_path, longer, told):
    write_plain_profile(tmp_path / "profile")
    given = instance(tmp_path, profile=str(tmp_path / "profile"))
    rows = [f"{i},{i + 0.1},{i + 0.1 + 0.1 * (i in longer)},20,{1 + (i in longer)}" for i in range(100)]
    log = tmp_path / "log.csv"
    log.write_text("\n".join(["arrival_s,first_token_s,last_token_s,input_tokens,output_tokens", *rows]))
    with pytest.raises(ValueError, match=rf"{told} make one token, so there is no time per token"):
        calibrate(Cluster((given,)), read_log(log), 60)


def write_plain_profile(folder):
    """The tables of `profiles.py` as files, but for skew's, which have no effect on these lengths."""
    from hf_infeco.servesim.profiles import write_profile

    from .profiles import attention_rows

    names = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us")
    write_profile(
        folder,
        {},
        {
            1: {
                "dense": [{"layer": "embedding", "tokens": n, "time_us": t} for n, t in ((1, 1e3), (1024, 20e3))],
                "per_sequence": [{"layer": "a", "sequences": n, "time_us": t} for n, t in ((1, 1e2), (64, 2e2))],
                "attention": [dict(zip(names, (*row[:4], 1e6 * row[4]))) for row in attention_rows()],
            }
        },
    )


def plan_of(tmp_path, **given):
    each = instance(tmp_path, profile=str(tmp_path / "profile"), link=Link(30.0, 5.0), dollars_per_hour=2.0)
    return Plan(each, **given)


def test_a_plan_says_why_each_loser_lost(cluster_file, tmp_path):
    trace = list(read_trace(tmp_path / "trace.jsonl"))
    plan = plan_of(tmp_path, devices=(1, 2), splits=True, transfer=Link(30.0))
    found = make_plan(plan, trace)
    assert {each.name for each in found} == {
        "1 x tp1",
        "2 x tp1",
        "1 x tp2",
        "1 x tp1 prefill + 1 x tp1 decode",
    }
    assert not found[0].reasons and all(each.summary for each in found)
    assert any("costs less and answers no later" in reason for each in found for reason in each.reasons)
    cheapest = min(found, key=lambda each: each.dollars_per_million)
    dollars = 2.0 * cheapest.devices * cheapest.summary["seconds"] / 3600
    assert cheapest.dollars_per_million == pytest.approx(1e6 * dollars / cheapest.summary["output_tokens"])


def test_a_promise_that_nobody_keeps_is_told_with_its_figure(cluster_file, tmp_path):
    plan = plan_of(tmp_path, devices=(1,), promise=Promise(ttft=1e-6))
    (only,) = make_plan(plan, list(read_trace(tmp_path / "trace.jsonl")))
    assert any("promised are 1e-06 s" in reason for reason in only.reasons)


def test_a_patch_that_packs_the_cache_has_room_for_more(cluster_file, tmp_path):
    plan = plan_of(tmp_path, devices=(1,), patches={"packed": Patch(kv_bytes=0.25)})
    blocks = {each.name: each.cluster.instances[0].kv_blocks for each in layouts(plan)}
    assert blocks == {"1 x tp1": 64, "1 x tp1, packed": 256}


def test_a_layout_has_no_more_devices_than_its_stages_and_ranks_leave(cluster_file, tmp_path):
    plan = plan_of(tmp_path, devices=(2, 4), widths=(1, 2))
    staged = replace(plan, instance=replace(plan.instance, pp=2))
    found = {(each.name, each.devices): each.cluster.instances[0] for each in layouts(staged)}
    assert list(found) == [("1 x tp1", 2), ("2 x tp1", 4), ("1 x tp2", 4)]
    assert all(each.count * each.devices == devices for (_, devices), each in found.items())
    with pytest.raises(ValueError, match=r"an instance's tp \* pp \* dp must divide `devices`"):
        make_plan(replace(staged, devices=(3,)), [])


def test_a_plan_for_a_trace_without_requests_is_refused(cluster_file, tmp_path):
    with pytest.raises(ValueError, match="the trace has no requests"):
        make_plan(plan_of(tmp_path, devices=(1,)), [])


def test_splits_without_the_link_between_them_are_refused(cluster_file, tmp_path):
    with pytest.raises(ValueError, match="`splits` needs `transfer`"):
        make_plan(plan_of(tmp_path, devices=(2,), splits=True), [])


def test_the_paths_of_a_plan_are_relative_to_its_file(tmp_path):
    described = {
        "instance": {"model": "m", "profile": "p"},
        "devices": [1],
        "patches": {"packed": {"profile": "q"}, "same": {"kv_bytes": 0.5}},
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(described))
    plan = read_plan(tmp_path / "plan.yaml")
    assert (plan.instance.model, plan.instance.profile) == (str(tmp_path / "m"), str(tmp_path / "p"))
    assert [plan.patches[name].profile for name in ("packed", "same")] == [str(tmp_path / "q"), None]


def test_the_plan_command_draws_and_prints(cluster_file, tmp_path):
    described = {
        "instance": {"model": "config.json", "profile": "profile", "kv_blocks": 200, "dollars_per_hour": 2.0},
        "devices": [1],
        "widths": [1],
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(described))
    shown = run("plan", tmp_path / "plan.yaml", "--trace", tmp_path / "trace.jsonl", "--out", tmp_path / "p.svg")
    assert "1 x tp1" in shown and "nothing: take it" in shown and (tmp_path / "p.svg").stat().st_size > 1000


def test_a_profile_is_measured_written_and_taken_up_where_it_was_cut_off(tmp_path):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from hf_infeco.servesim.profiling import Grid, Points, profile_model

    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=64,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    grid = Grid(max_tokens=32, max_kv=64, max_seqs=2, repeats=1)
    Points(tmp_path / "points.jsonl").once("tp1 lm_head 1", lambda: 0.5)  # what a run before had measured
    profile_model(lambda width: model, (1,), tmp_path, grid, {"model": "tiny"})
    found = read_tables(tmp_path, 1, layers=2)
    assert found.head(1) == pytest.approx(0.5) and found.dense(32) > 0 and found.attention(16, 64, 2, 64) > 0
    assert not (tmp_path / "points.jsonl").exists() and "measured" in found.source


def test_aiconfigurators_database_makes_a_profile(tmp_path):
    pytest.importorskip("aiconfigurator_core", reason="the extra [aic] is not installed")
    from hf_infeco.servesim.aic import write_aic

    write_aic("meta-llama/Meta-Llama-3.1-8B", "h100_sxm", tmp_path)
    found = read_tables(tmp_path, 1, layers=32)
    assert found.source == "aiconfigurator-core, h100_sxm"
    assert 0.003 < found.dense(1) < found.dense(2048) < 0.2
