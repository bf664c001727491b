"""The examples run as they stand."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_notebook_runs_from_its_first_cell_to_its_last(monkeypatch, capsys):
    monkeypatch.chdir(ROOT / "examples")
    cells = json.loads(Path("patch.ipynb").read_text())["cells"]
    names: dict = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert names["packed"] < 0.6 * names["dense"]
    assert "4 bits per number, attended packed" in capsys.readouterr().out


def test_generate_answers_and_reports():
    command = [sys.executable, "examples/generate.py", "--prompt", "The sun", "--new-tokens", "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "innerq  enabled" in done.stdout and "bytes before" in done.stdout


def test_planning_a_cluster_names_a_layout_and_why_others_lost():
    command = [sys.executable, "examples/plan_a_cluster.py", "--rate", "6"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].endswith("keeps the promise, and nobody beats it")
    assert "costs less and answers no later" in done.stdout
