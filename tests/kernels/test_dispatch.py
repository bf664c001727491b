"""Which backend runs: the fastest that can, with a reason for each that cannot, or the one that is asked for."""

import sys

import pytest
import torch

from hf_infeco.kernels import dispatch
from hf_infeco.kernels.dispatch import DEVICES, OPERATIONS, VARIABLE, choose
from hf_infeco.kernels.innerq import cpu, reference

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    dispatch._choose.cache_clear()
    yield
    dispatch._choose.cache_clear()


def test_tensors_on_the_cpu_go_to_numba_and_the_gpu_backend_says_why_not():
    choice = choose("innerq_decode", CPU)
    assert choice.backend == "cpu" and choice.module is cpu
    assert choice.refused == {"triton": "it runs on cuda, and the tensors are on cpu"}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_has_a_backend_on_any_device(operation):
    choice = choose(operation, META)
    assert choice.backend == "reference"
    assert set(choice.refused) == set(OPERATIONS[operation][1]) - {"reference"}


def test_without_numba_the_reference_runs_and_the_reason_is_told(monkeypatch):
    for name in ("numba", "hf_infeco.kernels.innerq.cpu"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails
    choice = choose("innerq_decode", CPU)
    assert choice.module is reference
    assert "cannot be imported" in choice.refused["cpu"]


def test_a_backend_can_be_forced(monkeypatch):
    monkeypatch.setenv(VARIABLE, "reference")
    choice = choose("innerq_decode", CPU)
    assert choice.module is reference
    assert "HF_INFECO_BACKEND=reference" in choice.refused["cpu"]


def test_forcing_what_cannot_run_names_the_reason(monkeypatch):
    monkeypatch.setenv(VARIABLE, "triton")
    with pytest.raises(ValueError, match=r"HF_INFECO_BACKEND=triton cannot run innerq_decode on cpu: it runs on cuda"):
        choose("innerq_decode", CPU)


def test_forcing_an_unknown_backend_names_the_known_ones(monkeypatch):
    monkeypatch.setenv(VARIABLE, "fast")
    with pytest.raises(ValueError, match=r"HF_INFECO_BACKEND=fast .*'triton', 'cpu', 'reference'"):
        choose("innerq_decode", CPU)


def test_an_operation_without_the_forced_backend_is_not_affected(monkeypatch):
    monkeypatch.setenv(VARIABLE, "triton")
    assert choose("innerq_dequantize", CPU).backend == "cpu"


def test_every_backend_of_the_table_is_known():
    assert {backend for _, backends in OPERATIONS.values() for backend in backends} == set(DEVICES)
