"""The commands, run as a user runs them, on a model folder that the test writes."""

import json
import subprocess
import sys

import pytest
import torch
import transformers
from transformers import LlamaConfig
from typer.testing import CliRunner

import hf_infeco
from hf_infeco.cli import app


@pytest.fixture
def model_folder(tmp_path):
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=64,
    )
    config.save_pretrained(tmp_path)
    return tmp_path


def run(*arguments, exit_code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == exit_code, result.output
    return result


def test_env_names_every_version_a_bug_report_needs():
    output = run("env").output
    for name in ("hf_infeco", "torch", "transformers", "accelerate", "peft", "triton", "numba", "python", "gpu"):
        assert any(line.startswith(f"{name} ") for line in output.splitlines()), name
    assert transformers.__version__ in output
    assert torch.__version__.split("+")[0] in output


def test_env_as_json_is_json():
    found = json.loads(run("env", "--json").output)
    assert found["transformers"] == transformers.__version__
    backends = dict(line.split(": ") for line in found["kernels"])
    assert all({"cpu", "reference", "triton"} <= set(backends[name].split()) for name in ("innerq", "s2o", "static"))


def test_explain_prints_the_report_of_the_config(model_folder):
    expected = hf_infeco.explain(LlamaConfig.from_pretrained(model_folder))
    assert run("explain", model_folder).output.strip() == str(expected).strip()


def test_explain_as_json_is_the_report_as_a_dict(model_folder):
    expected = hf_infeco.explain(LlamaConfig.from_pretrained(model_folder)).to_dict()
    assert json.loads(run("explain", model_folder, "--json").output) == json.loads(json.dumps(expected))


@pytest.mark.parametrize("content", [None, "{}", "no json", '{"model_type": "no_such_model"}'])
def test_explain_of_something_else_is_one_line_and_exit_code_1(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    result = run("explain", tmp_path, exit_code=1)
    assert len(result.stderr.strip().splitlines()) == 1
    assert str(tmp_path) in result.stderr
    assert not result.stdout


def test_explain_of_a_path_that_is_not_there_does_not_ask_the_hub(tmp_path):
    result = run("explain", tmp_path / "missing", exit_code=1)
    assert result.stderr == f"Error: '{tmp_path / 'missing'}' does not exist\n"


def test_explain_runs_no_code_of_the_repository(model_folder, tmp_path):
    config = json.loads((model_folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.MineConfig"}}
    (model_folder / "config.json").write_text(json.dumps(config))
    (model_folder / "mine.py").write_text("raise SystemExit('this must not run')")
    assert "this must not run" not in run("explain", model_folder, exit_code=1).output


@pytest.mark.parametrize("arguments", [["--help"], ["env", "--help"], ["explain", "--help"]])
def test_the_commands_ask_for_torch_only_when_they_run(arguments):
    code = (
        "import sys\n"
        "from hf_infeco.cli import app\n"
        f"try:\n    app({arguments!r})\nexcept SystemExit as exit:\n    assert not exit.code\n"
        "loaded = {'torch', 'transformers'} & set(sys.modules)\nassert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_train_tells_what_is_wrong_with_a_config(tmp_path):
    config = tmp_path / "config.json"
    config.write_text('{"traces": 0}')
    result = CliRunner().invoke(app, ["train", "sidequest", "--model", "nowhere", "--config", str(config)])
    assert result.exit_code == 1 and "traces=0 must be at least 1" in " ".join(result.output.split())


def test_serve_without_its_extra_names_it(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("hf_infeco.serving")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert "fastapi is missing: pip install 'hf_infeco[serve]'" in run("serve", "model", exit_code=1).output


def test_a_package_that_only_a_served_model_needs_is_not_told_as_one_of_the_extra(monkeypatch):
    def serve(*_):
        raise ModuleNotFoundError("No module named 'tiktoken'", name="tiktoken")

    pytest.importorskip("openai", reason="the extra [serve] is not installed")
    monkeypatch.setattr("hf_infeco.serving.serve", serve)
    assert run("serve", "model", exit_code=1).stderr == "Error: No module named 'tiktoken'\n"


def test_serve_refuses_a_key_that_is_empty():
    output = run("serve", "model", "--api-key", "", exit_code=2).output
    assert "--api-key is empty" in " ".join(output.split())


def test_serve_takes_a_number_of_processes_for_a_width():
    assert "must be auto or a number" in " ".join(run("serve", "model", "--width", "wide", exit_code=2).output.split())
