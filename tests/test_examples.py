"""The examples run as they stand."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

from .sidequest.agents import QUESTION, call, session

ROOT = Path(__file__).parents[1]


def test_the_notebook_runs_from_its_first_cell_to_its_last(monkeypatch, capsys):
    monkeypatch.chdir(ROOT / "examples")
    cells = json.loads(Path("patch.ipynb").read_text())["cells"]
    names: dict = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert names["packed"] < 0.6 * names["dense"]
    assert "4.125 bits per number, attended packed" in capsys.readouterr().out


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


def test_the_agents_example_shows_what_happens_at_each_turn():
    """The base model is fetched; what the example prints of a run is tested on one of a tiny model."""
    path = ROOT / "examples" / "agent_sidequest.py"
    spec = importlib.util.spec_from_file_location("agent_sidequest", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    turns = [call("a", "First. "), call("b"), call("c"), "Done."]
    shown = []
    session(turns, [None, None, '{"del_cursors": [0]}']).run(
        QUESTION, on_event=lambda event: shown.append((example.STYLES[event.kind], example.describe(event)))
    )
    texts = [text for _, text in shown]
    assert texts[0].startswith("turn 1: First. ") and texts[0].endswith("open: 0")
    assert "side thread begins; open: 0, 1" in texts and 'side thread: {"del_cursors": [0]}' in texts
    assert any(text.startswith("freed: cursors 0, ") for text in texts) and texts[-1] == "answer: Done."
