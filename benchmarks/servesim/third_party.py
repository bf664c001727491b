"""Tables that nobody measured on the machine in question, raw and calibrated, on the two dense runs they cover."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from hf_infeco.servesim import Cluster, Correction
from hf_infeco.servesim.aic import write_aic
from hf_infeco.servesim.calibrate import calibrate, errors, times
from hf_infeco.servesim.roofline import Device, write_roofline
from hf_infeco.servesim.settings import Link
from hf_infeco.servesim.shape import ModelShape
from hf_infeco.servesim.tables import read_tables

from .public import PublicRun

SYSTEM = "rtx_pro_6000_server"
MODELS = {"rtxpro6000__llama-3.1-8b": "meta-llama/Meta-Llama-3.1-8B", "rtxpro6000__qwen3-32b": "Qwen/Qwen3-32B"}
# Of the vendor's data sheet, and the link of the runs' cluster files.
RTX_PRO_6000 = Device(tflops=503.8, memory_gb=96, memory_tb_per_s=1.597, link=Link(16.0, 20.0))


def measure_third_party(
    runs: tuple[PublicRun, ...], kinds: tuple[str, ...], first: int, rounds: int
) -> list[dict[str, Any]]:
    """An entry per run, kind of tables, and whether they were calibrated: errors on the requests held out."""
    entries = []
    for run in runs:
        if run.folder in MODELS:
            for name in kinds:
                with TemporaryDirectory() as folder:
                    WRITERS[name](run, Path(folder))
                    entries += _measure(run, name, folder, first, rounds)
    return entries


def _write_aic(run: PublicRun, folder: Path) -> None:
    write_aic(MODELS[run.folder], SYSTEM, folder, (run.cluster.instances[0].tp,))


def _write_roofline(run: PublicRun, folder: Path) -> None:
    instance = run.cluster.instances[0]
    write_roofline(ModelShape.read(instance.model), RTX_PRO_6000, "RTX PRO 6000", folder, (instance.tp,))


WRITERS = {"AIConfigurator": _write_aic, "roofline": _write_roofline}


def _measure(run: PublicRun, name: str, folder: str, first: int, rounds: int) -> list[dict[str, Any]]:
    instance = replace(run.cluster.instances[0], profile=folder)
    cluster, log = Cluster((instance,)), run.log
    tables = read_tables(folder, instance.tp, ModelShape.read(instance.model).layers)
    held_out = np.arange(first, len(log.requests))
    fitted = calibrate(cluster, log, first, rounds=rounds)[0]
    entries = []
    for how, correction in {"raw": Correction(), "calibrated": fitted}.items():
        found = errors(times(cluster, log, replace(tables, correction=correction)), log, held_out)
        entries.append({"run": run.title, "tables": name, "how": how, "fitted": vars(correction), **found})
    return entries
