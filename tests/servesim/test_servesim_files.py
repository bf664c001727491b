"""Descriptions, tables and traces: what is read, and that whatever is wrong is named by file and line."""

import json
from itertools import pairwise

import numpy as np
import pytest

from hf_infeco.benchmarks.servesim.public import DATA, RUNS
from hf_infeco.servesim import Link, Request, read_trace, write_trace
from hf_infeco.servesim.files import read_cluster
from hf_infeco.servesim.generators import poisson, servegen
from hf_infeco.servesim.grid import AttentionGrid, Curve
from hf_infeco.servesim.importers import SOURCES
from hf_infeco.servesim.logs import read_log
from hf_infeco.servesim.profiles import store_calibration, write_profile
from hf_infeco.servesim.roofline import find_device, write_roofline
from hf_infeco.servesim.shape import ModelShape
from hf_infeco.servesim.tables import read_tables

from .profiles import SHAPE, attention_rows, attention_seconds

TRACES = DATA / "traces"
CLUSTER = """instances:
  - model: m/config.json
    profile: p
    tp: 2
    kv_blocks: 100
    link: {gb_per_s: 16, latency_us: 20}
routing: prefix
"""


def write(path, text):
    path.write_text(text)
    return path


# ---------------------------------------------------------------- clusters


def test_a_cluster_is_read_and_its_paths_are_relative_to_its_file(tmp_path):
    cluster = read_cluster(write(tmp_path / "c.yaml", CLUSTER))
    (instance,) = cluster.instances
    assert instance.model == str(tmp_path / "m/config.json") and instance.link == Link(16, 20)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("    tp: 2", "    tpp: 2", r"c.yaml:4: unknown field instances.0.tpp"),
        ("    tp: 2", "    tp: two", r"c.yaml:4: instances.0.tp: .*integer.*'two'"),
        ("gb_per_s: 16, ", "", r"c.yaml:6: the field instances.0.link.gb_per_s is missing"),
        ("  - model: m/config.json\n    profile", "  - profile", r"c.yaml:2: the field instances.0.model is missing"),
        ("routing: prefix", "routing: [", r"c.yaml:\d: it is no YAML"),
    ],
)
def test_what_is_wrong_with_a_cluster_is_named_by_its_line(tmp_path, old, new, told):
    with pytest.raises(ValueError, match=told):
        read_cluster(write(tmp_path / "c.yaml", CLUSTER.replace(old, new)))


# ---------------------------------------------------------------- tables


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.folder)
def test_bundles_of_llmservingsim_load_unchanged(run):
    instance = run.cluster.instances[0]
    shape = ModelShape.read(instance.model)
    tables = read_tables(instance.profile, instance.tp, shape.layers)
    assert (tables.moe is not None) == bool(shape.experts)
    assert (tables.skew is None) == ("4090" in run.title)  # its meta.yaml switches it off
    assert 0.001 < tables.dense(1) < tables.dense(2048) < 1.0


def test_lookups_are_linear_between_rows_and_exact_on_them():
    grid = AttentionGrid(attention_rows())
    dice = np.random.default_rng(0)
    for _ in range(100):
        chunk, before, n, kv = (int(dice.integers(1, last)) for last in (1024, 1024, 64, 2048))
        point = max(chunk, 16), before, n, max(kv, 64)
        assert grid(*point) == pytest.approx(attention_seconds(*point), rel=1e-9)
        assert not grid.is_outside(*point)


def test_a_hole_is_filled_and_told():
    rows = [row for row in attention_rows() if not (row[0] and row[2] == 64)]
    grid = AttentionGrid(rows)
    assert grid.is_outside(64, 0, 30, 500) and not grid.is_outside(64, 0, 8, 500)
    assert not grid.is_outside(0, 0, 30, 500)  # decoding alone has those rows
    assert grid(64, 0, 30, 500) == pytest.approx(attention_seconds(64, 0, 30, 500))


def test_a_ragged_grid_is_interpolated_inside_and_has_no_holes():
    rows = [row for row in attention_rows() if row[:2] != (64, 64)]
    grid = AttentionGrid(rows)
    assert not grid.is_outside(64, 64, 8, 500)
    assert grid(64, 64, 8, 500) == pytest.approx(attention_seconds(64, 64, 8, 500))


def test_a_curve_goes_on_with_its_slope():
    assert Curve([1, 4, 8], [1.0, 4.0, 8.0])(16) == pytest.approx(16.0)


def small_profile(folder):
    points = ("tokens", "sequences")
    tables = {
        name: [{"layer": "a", axis: n, "time_us": 1.0 * n} for n in (1, 8)]
        for name, axis in zip(("dense", "per_sequence"), points)
    }
    names = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us")
    attention = [dict(zip(names, row)) for row in attention_rows()]
    write_profile(folder, {"gpu": "none"}, {1: {**tables, "attention": attention}})
    return folder


def test_a_written_profile_is_read_back_with_its_calibration_and_band(tmp_path):
    folder = small_profile(tmp_path)
    store_calibration(folder, 1, {"decode": 1.25}, {"requests": 9})
    tables = read_tables(folder, 1, layers=3)
    assert tables.dense(8) == pytest.approx(24e-6) and tables.head(8) == pytest.approx(8e-6)
    assert tables.correction.decode == 1.25 and tables.band == {"requests": 9} and tables.source == "measured, none"


def test_missing_widths_tables_columns_and_cells_are_named(tmp_path):
    folder = small_profile(tmp_path)
    with pytest.raises(ValueError, match="no tables for tensor parallel width 4, it has tp1"):
        read_tables(folder, 4, 1)
    path = folder / "tp1" / "dense.csv"
    path.write_text(path.read_text().replace("a,8,8", "a,8,x"))
    with pytest.raises(ValueError, match=r"dense.csv:3: time_us is 'x' and must be a number"):
        read_tables(folder, 1, 1)
    path.write_text(path.read_text().replace("time_us", "micros"))
    with pytest.raises(ValueError, match=r"dense.csv:1: the column time_us is missing"):
        read_tables(folder, 1, 1)
    path.write_text("layer,tokens,time_us\n")
    with pytest.raises(ValueError, match=r"dense.csv:1: there are no rows"):
        read_tables(folder, 1, 1)
    path.unlink()
    with pytest.raises(ValueError, match=r"dense.csv is missing"):
        read_tables(folder, 1, 1)


@pytest.mark.parametrize("name", ["A100", "H100", "H200", "B200", "L40S", "MI300X"])
def test_every_ready_device_makes_a_profile_marked_as_an_estimate(tmp_path, name):
    write_roofline(SHAPE, find_device(name), name, tmp_path)
    tables = read_tables(tmp_path, 1, SHAPE.layers)
    assert tables.source == f"estimated by a roofline, {name}" and tables.dense(4096) >= tables.dense(1) > 0


def test_an_unknown_device_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"called 'H10'; devices\.yaml has A100, H100, H200, B200, L40S, MI300X"):
        find_device("H10")


# ---------------------------------------------------------------- traces


def test_the_native_format_is_written_as_it_is_read(tmp_path):
    requests = [
        Request(0.5, 40, 3, (1, 2), 16, session="a", delay=0.25),
        Request(0.75, 7, 1, number=1),
    ]
    assert write_trace(requests, tmp_path / "t.jsonl") == 2
    read = list(read_trace(tmp_path / "t.jsonl"))
    assert [(r.arrival, r.input_tokens, r.hash_ids, r.delay) for r in read] == [
        (0.5, 40, (1, 2), 0.25),
        (0.75, 7, (), None),
    ]


def test_the_blocks_of_mooncakes_traces_have_512_tokens():
    first = next(read_trace(TRACES / "mooncake_conversation_first500.jsonl"))
    assert first.hash_block == 512 and len(first.hash_ids) == first.input_tokens // 512


@pytest.mark.parametrize(
    ("source", "file", "count", "second"),
    [
        ("azure", "azure2023_conv_first1000.csv", 1000, (4.314579, 396, 109)),
        ("burstgpt", "burstgpt_layout_v1.csv", 3, (45.0, 1087, 230)),  # the fourth failed
        ("burstgpt", "burstgpt_layout_v3.csv", 3, (9.0, 560, 40)),
        ("bailian", "qwen_bailian_layout.jsonl", 2, (61.1, 700, 90)),
        ("native", "mooncake_conversation_first500.jsonl", 500, (0.0, 7322, 490)),
    ],
)
def test_public_formats_are_read(source, file, count, second):
    requests = list(read_trace(TRACES / file, source=source))
    assert len(requests) == count
    assert (requests[1].arrival, requests[1].input_tokens, requests[1].output_tokens) == pytest.approx(second)


def test_azures_rows_may_name_the_zone_or_not(tmp_path):
    rows = ["TIMESTAMP,ContextTokens,GeneratedTokens", "2024-05-10 00:00:00+00:00,9,4", "2024-05-10 00:00:00.5,8,3"]
    rows += ["2024-05-10 02:00:01.2345678+02:00,7,2"]
    requests = list(read_trace(write(tmp_path / "a.csv", "\n".join(rows)), source="azure"))
    assert [(r.arrival, r.input_tokens) for r in requests] == [(0.0, 9), (0.5, 8), (1.234567, 7)]


def test_a_time_of_azure_that_is_none_is_named_by_its_line(tmp_path):
    rows = "TIMESTAMP,ContextTokens,GeneratedTokens\nsoon,9,4"
    with pytest.raises(ValueError, match=r"a.csv:2: TIMESTAMP is 'soon' and must be a date and time"):
        list(read_trace(write(tmp_path / "a.csv", rows), source="azure"))


def test_conversations_of_bailian_and_burstgpt_are_sessions():
    assert {r.session for r in read_trace(TRACES / "qwen_bailian_layout.jsonl", source="bailian")} == {"1"}
    assert next(read_trace(TRACES / "burstgpt_layout_v3.csv", source="burstgpt")).session == "a"


def test_llmservingsims_datasets_are_read(tmp_path):
    line = {"arrival_time_ns": 5e8, "input_toks": 9, "output_toks": 4}
    (request,) = read_trace(write(tmp_path / "d.jsonl", json.dumps(line)), source="llmservingsim")
    assert (request.arrival, request.input_tokens, request.output_tokens) == (0.5, 9, 4)


def vllm_log(path, **other):
    log = {
        "input_lens": [30, 20],
        "output_lens": [3, 2],
        "ttfts": [0.2, 0.1],
        "itls": [[0.01, 0.03], [0.05]],
        "start_times": [101.0, 100.0],
    }
    return write(path, json.dumps(log | other))


def test_a_log_of_vllm_bench_is_a_trace_and_a_truth(tmp_path):
    path = vllm_log(tmp_path / "log.json")
    assert [request.input_tokens for request in read_trace(path, source="vllm-bench")] == [20, 30]
    log = read_log(path)
    assert log.ttft.tolist() == [0.1, 0.2] and log.tpot.tolist() == pytest.approx([0.05, 0.02])


def test_a_log_without_details_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match="ttfts, itls, start_times are missing; run vllm bench serve with --save-detailed"
    ):
        read_log(write(tmp_path / "log.json", '{"input_lens": [1], "output_lens": [1]}'))


LOG = "arrival_s,first_token_s,last_token_s,input_tokens,output_tokens\n"


def test_a_log_by_rows_is_put_in_the_order_of_arrival(tmp_path):
    log = read_log(write(tmp_path / "log.csv", LOG + "1.0,1.5,2.5,30,3\n0.0,0.25,3.25,20,4\n"))
    assert [request.input_tokens for request in log.requests] == [20, 30]
    assert log.ttft.tolist() == [0.25, 0.5] and log.tpot.tolist() == [1.0, 0.5] and log.latency.tolist() == [3.25, 1.5]


def test_a_log_in_which_nothing_came_through_is_refused(tmp_path):
    failed = vllm_log(tmp_path / "log.json", output_lens=[0, 0], ttfts=[0.0, 0.0], itls=[[], []])
    for path in (write(tmp_path / "log.csv", LOG), failed):
        with pytest.raises(ValueError, match=rf"{path.name}: no request came through"):
            read_log(path)


@pytest.mark.parametrize(
    ("last", "told"),
    [("0.0,0.2,0.4,0,3", "log.csv:3: 0 tokens in and 3 out"), ("0.0,,0.4,9,3", "log.csv:3: first_token_s is ''")],
)
def test_what_is_wrong_with_a_log_is_named_by_the_line_it_has_in_the_file(tmp_path, last, told):
    with pytest.raises(ValueError, match=told):
        read_log(write(tmp_path / "log.csv", LOG + "1.0,1.5,2.5,30,3\n" + last))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (
            '{"timestamp": 1, "input_length": 5, "output_length": 2}',
            "t.jsonl:2: it arrives at 0.001 s, the one before at",
        ),
        ('{"timestamp": 9000, "input_length": 5}', "t.jsonl:2: the field output_length is missing"),
        ('{"timestamp": 9000, "input_length": 0, "output_length": 2}', "t.jsonl:2: 0 tokens in and 2 out"),
        ('{"timestamp": 9000, "input_length": 1.5, "output_length": 2}', "t.jsonl:2: input_length is 1.5"),
        (
            '{"timestamp": 9000, "input_length": NaN, "output_length": 2}',
            "t.jsonl:2: input_length is nan",
        ),
        (
            '{"timestamp": 9000, "input_length": 5, "output_length": "inf"}',
            "t.jsonl:2: output_length is 'inf'",
        ),
        ('{"timestamp": NaN, "input_length": 5, "output_length": 2}', "t.jsonl:2: timestamp is nan"),
        ("{", "t.jsonl:2: it is no JSON"),
    ],
)
def test_what_is_wrong_with_a_trace_is_named_by_its_line(tmp_path, line, told):
    first = '{"timestamp": 2000, "input_length": 5, "output_length": 2}\n'
    with pytest.raises(ValueError, match=told):
        list(read_trace(write(tmp_path / "t.jsonl", first + line)))


def test_scale_multiplies_the_rate_and_take_ends_the_trace():
    path = TRACES / "mooncake_conversation_first500.jsonl"
    slow, fast = list(read_trace(path, take=50)), list(read_trace(path, scale=4.0, take=50))
    assert len(fast) == 50 and fast[-1].arrival == pytest.approx(slow[-1].arrival / 4)


def test_every_source_is_named_in_the_commands_help():
    from hf_infeco.cli.simulate import simulate

    (option,) = simulate.__annotations__["source"].__metadata__
    assert all(source in option.help for source in SOURCES)


def test_poisson_arrivals_have_their_rate_and_bursts_their_spread():
    for burstiness in (1.0, 3.0):
        arrivals = np.array([request.arrival for request in poisson(10.0, 4000, 100, 20, burstiness)])
        gaps = np.diff(arrivals)
        assert 1 / gaps.mean() == pytest.approx(10.0, rel=0.2)
        assert gaps.std() / gaps.mean() == pytest.approx(burstiness, rel=0.2)


def test_servegens_clients_keep_their_rates_and_order():
    folder = TRACES / "servegen"
    requests = list(
        servegen(folder / "reason_deepseek-r1_rates.csv", folder / "reason_deepseek-r1_lengths.json", 60.0)
    )
    assert len(requests) > 100
    assert all(a.arrival <= b.arrival for a, b in pairwise(requests))
