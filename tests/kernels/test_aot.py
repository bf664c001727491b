"""What `make aot` refuses. It compiles the Triton kernels for GPUs that are not here, which takes a minute."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="triton is not installed, so there is nothing to compile")
aot = pytest.importorskip("hf_infeco.kernels.aot")


def run_aot(*targets: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh process: this one's kernels may be interpreted ones."""
    compiling = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | environment
    command = [sys.executable, "-m", "hf_infeco.kernels.aot", *targets]
    return subprocess.run(command, env=compiling, capture_output=True, text=True, timeout=280)


@pytest.mark.parametrize("shared, spills, code", [(65536, 0, 0), (65537, 0, 1), (100, 4, 1)])
def test_a_kernel_over_a_limit_fails_the_run(monkeypatch, capsys, shared, spills, code):
    found = aot.Resources("kernel", "variant", "gfx942", 128, shared, 65536, spills)
    monkeypatch.setattr(aot, "survey", lambda targets: iter([found]))
    assert aot.main([]) == code
    assert ("over the limit" in capsys.readouterr().out) == (code == 1)


def test_an_unknown_target_is_named():
    done = run_aot("sm_70")
    assert done.returncode != 0 and "no target sm_70: choose from sm_80" in done.stderr


def test_interpreted_kernels_are_refused():
    done = run_aot("sm_90", TRITON_INTERPRET="1")
    assert done.returncode != 0 and "TRITON_INTERPRET=1 leaves nothing to compile" in done.stderr
