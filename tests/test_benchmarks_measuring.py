"""How benchmarks take time, and where they write."""

import torch

from hf_infeco.benchmarks import measuring
from hf_infeco.benchmarks.measuring import ROOT, median_seconds, results_folder, where


def test_functions_that_are_compared_run_in_turn():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in ("dense", "sparse")}
    seconds = median_seconds(torch.device("cpu"), functions, repeats=3)
    assert calls == ["dense", "sparse"] * 3
    assert list(seconds) == ["dense", "sparse"] and all(0 <= taken < 1 for taken in seconds.values())


def test_results_go_to_the_repository():
    assert results_folder() == ROOT / "benchmarks" / "results"
    assert (results_folder() / "foundation.json").is_file()


def test_an_install_without_the_repository_writes_to_the_working_folder_and_names_no_commit(monkeypatch, tmp_path):
    monkeypatch.setattr(measuring, "ROOT", tmp_path / "site-packages" / "hf_infeco")
    monkeypatch.chdir(tmp_path)
    assert results_folder() == tmp_path
    assert where("cpu")["commit"] is None
