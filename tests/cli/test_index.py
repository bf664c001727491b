"""`hf-infeco index`, run as a user runs it, on files that the test writes."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from hf_infeco.cli import app
from hf_infeco.static import StaticIndex

VOCAB = 1000
ROWS = [("b", [7, 8, 9]), ("a", [1, 2]), ("c", [7, 8, 3]), ("d", [7, 8, 9])]


def run(*arguments, exit_code=0):
    result = CliRunner().invoke(app, ["index", *map(str, arguments)])
    assert result.exit_code == exit_code, result.output
    return result


def write(folder, kind):
    """The rows as a file of this kind, and the arguments that read it."""
    path = folder / f"items.{kind}"
    if kind == "csv":
        lines = [f"{item},{' '.join(map(str, tokens))}" for item, tokens in ROWS]
        path.write_text("\n".join(["sku,tokens", *lines]) + "\n")
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps({"sku": item, "tokens": tokens}) for item, tokens in ROWS))
    else:
        columns = {"sku": [item for item, _ in ROWS], "tokens": [tokens for _, tokens in ROWS]}
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pytest.importorskip("pyarrow").table(columns), path)
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_table_becomes_the_index_that_python_builds(tmp_path, kind):
    out = run("build", write(tmp_path, kind), tmp_path / "index", "--vocab-size", VOCAB, "--id", "sku").output
    assert "3 sequences" in out and "4 items" in out
    built = StaticIndex.from_pretrained(tmp_path / "index")
    ids, sequences = zip(*ROWS, strict=True)
    assert built.fingerprint == StaticIndex.build(list(sequences), vocab_size=VOCAB, item_ids=ids).fingerprint
    assert [built.items(rank) for rank in range(3)] == [["a"], ["c"], ["b", "d"]]


def test_tokens_may_lie_in_several_columns(tmp_path):
    (tmp_path / "items.csv").write_text("t0,t1,name\n5,6,x\n7,8,y\n")
    run("build", tmp_path / "items.csv", tmp_path / "index", "--vocab-size", 10, "--tokens", "t0,t1")
    built = StaticIndex.from_pretrained(tmp_path / "index")
    assert built.fingerprint == StaticIndex.build([[5, 6], [7, 8]], vocab_size=10).fingerprint


def test_an_array_becomes_an_index(tmp_path):
    tokens = np.random.default_rng(0).integers(0, VOCAB, (500, 4))
    np.save(tmp_path / "items.npy", tokens)
    run("build", tmp_path / "items.npy", tmp_path / "index", "--vocab-size", VOCAB)
    expected = StaticIndex.build(tokens, vocab_size=VOCAB)
    assert StaticIndex.from_pretrained(tmp_path / "index").fingerprint == expected.fingerprint


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("items.csv", "tokens\n1 2\n3 5000\n", "Sequence 1 has token 5000"),
        ("items.csv", "names\n1 2\n", "no field ['tokens'], only ['names']"),
        ("items.jsonl", "no json", "Expecting value"),
        ("items.csv", "tokens\n", "no sequences"),
        ("items.txt", "1 2", ".txt is none of"),
        (None, None, "No such file"),
    ],
)
def test_what_cannot_be_built_is_one_line_and_exit_code_1(tmp_path, name, content, message):
    if name:
        (tmp_path / name).write_text(content)
    result = run("build", tmp_path / (name or "none.csv"), tmp_path / "index", "--vocab-size", VOCAB, exit_code=1)
    errors = [line for line in result.stderr.splitlines() if "Error" in line]  # a progress bar may stand above
    assert len(errors) == 1 and message in errors[0]
    assert not (tmp_path / "index").exists()


def test_inspect_prints_what_describe_says(tmp_path):
    index = StaticIndex.build([tokens for _, tokens in ROWS], vocab_size=VOCAB)
    index.save_pretrained(tmp_path)
    assert json.loads(run("inspect", tmp_path, "--json").output) == index.describe()
    text = run("inspect", tmp_path).output
    assert index.fingerprint in text and "most children" in text


def test_check_passes_a_sound_index_and_fails_a_damaged_one(tmp_path):
    StaticIndex.build([tokens for _, tokens in ROWS], vocab_size=VOCAB).save_pretrained(tmp_path)
    assert "is whole" in run("check", tmp_path).output
    about = json.loads((tmp_path / "static_index.json").read_text())
    (tmp_path / "static_index.json").write_text(json.dumps(about | {"fingerprint": "0" * 16}))
    assert "does not describe" in run("check", tmp_path, exit_code=1).stderr


@pytest.mark.parametrize("command", ["inspect", "check"])
def test_a_folder_that_is_no_index_is_named(tmp_path, command):
    assert "No static_index.safetensors" in run(command, tmp_path, exit_code=1).stderr
    assert "does not exist" in run(command, tmp_path / "missing", exit_code=1).stderr
