"""What tests of several kernels need."""

import pytest

from hf_infeco.kernels.s2o import cpu_cut, reference


@pytest.fixture
def one_cut(monkeypatch):
    """Both decide about the same granules; `test_s2o_cpu_cut.py` compares the cuts."""
    monkeypatch.setattr(reference, "cut_into_granules", cpu_cut.cut_into_granules)
