"""The tables of the serving simulator, from the file of results."""

from typing import Any

from ..documents import Table, entries_table, markdown_table

Entries = list[dict[str, Any]]

TITLES = {"ttft": "TTFT", "ttft_from_queue": "TTFT from queue", "tpot": "TPOT", "latency": "latency"}
WHO = ("LLMServingSim", "hf_infeco", "hf_infeco, calibrated")
PAPER_WHO = ("hf_infeco", "fitted", "LLMServingSim", "Vidur", "APEX", "TokenSim")
ERRORS = ("mean", "p50", "p90", "p99", "mape")


def truth_table(entries: Entries) -> str:
    """
    Errors in % over all 300 requests of each run: of the mean and of quantiles, and the mean of the requests' absolute
    errors (MAPE). `hf_infeco` has fitted nothing but the link where there are two devices, `calibrated` has fitted all
    factors of the table below, the link's where there are two devices; both on the first 80 requests. TTFT counts from
    arrival; LLMServingSim, which knows no inbox, has one TTFT in both rows.
    """
    return _errors(entries, "all")


def held_out_table(entries: Entries) -> str:
    """The same over the 220 requests that no fit has seen."""
    return _errors(entries, "held out")


def not_queued_table(entries: Entries) -> str:
    """Requests that got a seat at once (10 ms). Their TTFT depends on where in a step they arrive."""
    return _errors(entries, "not queued")


def queued_table(entries: Entries) -> str:
    """Requests that waited for a seat or for KV blocks."""
    return _errors(entries, "queued")


def _errors(entries: Entries, part: str) -> str:
    rows = [
        [entry["run"], entry["who"], TITLES[entry["metric"]], str(entry["requests"]), f"{entry['real_mean_s']:.3f}"]
        + [f"{entry[name]:.1f}" if name == "mape" else f"{entry[name]:+.1f}" for name in ERRORS]
        for entry in sorted(entries, key=lambda entry: (list(TITLES).index(entry["metric"]), entry["run"]))
        if entry["part"] == part
    ]
    return markdown_table(["run", "who", "metric", "requests", "real mean, s", *ERRORS[:-1], "MAPE"], rows)


def single_table(entries: Entries) -> str:
    """How many seconds our TTFT of a request, with nothing fitted, is off: quantiles over each third request."""
    rows = []
    for entry in entries:
        off = sorted(ours - real for ours, real in zip(entry["ours_s"], entry["real_s"]))
        rows.append(
            [entry["run"], *(f"{off[int(share * (len(off) - 1))]:+.2f}" for share in (0.1, 0.25, 0.5, 0.75, 0.9))]
        )
    return markdown_table(["run", "p10", "p25", "p50", "p75", "p90"], rows)


def fitted_table(entries: Entries) -> str:
    """What the first 80 requests have fitted; 1 and 0 change nothing."""
    shown = {}
    for entry in entries:
        if entry["fitted"]:
            shown[entry["run"], entry["who"]] = entry["fitted"]
    rows = [[*key, *(f"{value:.3g}" for value in fitted.values())] for key, fitted in shown.items()]
    return markdown_table(["run", "who", "prefill", "decode", "gap, us", "link", "partial"], rows)


def brief_table(entries: Entries) -> str:
    """Errors of the means in %, per run."""
    rows = []
    for run in dict.fromkeys(entry["run"] for entry in entries):
        for metric in ("ttft", "tpot"):
            found = {
                e["who"]: e["mean"] for e in entries if (e["run"], e["metric"], e["part"]) == (run, metric, "all")
            }
            rows.append([run, TITLES[metric], *(f"{found[who]:+.1f} %" for who in WHO)])
    return markdown_table(["run", "mean of", "LLMServingSim", "hf_infeco", "calibrated"], rows)


def paper_table(entries: Entries) -> str:
    """
    The paper's measured vLLM on H100s with Llama-3.1-70B, four devices an instance, and simulators' errors in %. SD is
    one instance, MD two, PDD one for prompts and one for decoding. Nothing was fitted but in the column `fitted`:
    tables and link alone are far off for PDD. There each request holds up a step on either side, for a time that is
    chosen by TPOT alone; TTFT and throughput follow.
    """
    rows = []
    for entry in entries:
        real = entry["vLLM"]
        units = {"throughput": "tokens/s", "ttft": "TTFT, ms", "tpot": "TPOT, ms"}
        for metric, unit in units.items():
            row = [entry["case"], unit, f"{real[metric]:,.1f}"]
            for who in PAPER_WHO:
                value = entry[who][metric] if who in entry else None
                row.append("" if value is None else f"{100 * (value / real[metric] - 1):+.1f}")
            rows.append(row)
        if "fitted" in entry:
            given = {"fitted": f"{1e3 * entry['handover_s']:.1f}"}
            rows.append([entry["case"], "hand-over, ms", "", *(given.get(who, "") for who in PAPER_WHO)])
    return markdown_table(["case", "", "vLLM", *PAPER_WHO], rows)


def third_party_table(entries: Entries) -> str:
    """
    Tables that nobody measured on this machine, on the 220 requests held out, errors in %: AIConfigurator's database
    of the same kind of device, and a roofline from its data sheet. Calibrated on the first 80 requests.
    """
    rows = [
        [entry["run"], entry["tables"], entry["how"]]
        + [f"{entry[name]['mean']:+.1f} ({entry[name]['mape']:.1f})" for name in ("ttft", "tpot", "latency")]
        for entry in entries
    ]
    return markdown_table(["run", "tables", "", "TTFT mean (MAPE)", "TPOT mean (MAPE)", "latency mean (MAPE)"], rows)


def speed_table(entries: Entries) -> str:
    """Eight instances that keep up with a steady load, one core, the process' own time and peak of memory."""
    columns = {
        "requests": "{requests:,}",
        "steps": "{steps:,}",
        "seconds": "{seconds:.1f}",
        "us per step": "{micros_per_step:.1f}",
        "peak MiB": "{peak_mib:.0f}",
    }
    return entries_table(columns, entries)


TABLES = (
    Table("All requests", ("runs",), truth_table),
    Table("Held-out requests", ("runs",), held_out_table),
    Table("Requests that did not queue", ("runs",), not_queued_table),
    Table("Requests that queued", ("runs",), queued_table),
    Table("Single requests", ("single",), single_table),
    Table("What was fitted", ("runs",), fitted_table),
    Table("H100, the paper's runs", ("paper",), paper_table),
    Table("Third-party tables", ("third_party",), third_party_table),
    Table("Speed", ("speed",), speed_table),
)
QUOTES = {"docs/serving_simulator.md": Table("Errors of the means", ("runs",), brief_table)}
