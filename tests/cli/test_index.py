"""`hf-infeco index`, run as a user runs it, on files that the test writes."""

import gzip
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
    ("name", "content"),
    [
        ("items.csv", "\ufeffsku,tokens\nb,7 8 9\na,1 2\n"),
        ("items.CSV", 'sku,tokens\r\nb,"[7, 8, 9]"\r\n\r\na,"1,2"\r\n'),
        ("items.tsv", "sku\ttokens\nb\t7, 8,9\na\t[1, 2]\n"),
        ("items.csv.gz", "sku,tokens\nb,7 8 9\na,1 2\n"),
        ("Items.JSONL.GZ", '{"sku": "b", "tokens": [7, 8, 9]}\n\n{"tokens": "1 2", "sku": "a"}\n'),
    ],
)
def test_tables_are_read_as_spreadsheets_and_tables_of_others_write_them(tmp_path, name, content):
    source = tmp_path / name
    encoded = content.encode()
    source.write_bytes(gzip.compress(encoded) if name.lower().endswith(".gz") else encoded)
    run("build", source, tmp_path / "index", "--vocab-size", VOCAB, "--id", "sku")
    expected = StaticIndex.build([[7, 8, 9], [1, 2]], vocab_size=VOCAB, item_ids=["b", "a"])
    assert StaticIndex.from_pretrained(tmp_path / "index").fingerprint == expected.fingerprint


def fails_in_one_line(*arguments) -> str:
    result = run(*arguments, exit_code=1)
    assert isinstance(result.exception, SystemExit), result.exception  # and no traceback
    errors = [line for line in result.stderr.splitlines() if "Error" in line]  # a progress bar may stand above
    assert len(errors) == 1
    return errors[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("items.csv", "tokens\n1 2\n3 5000\n", "Sequence 1 has token 5000"),
        ("items.csv", "names\n1 2\n", "no field ['tokens'], only ['names']"),
        ("items.csv", "tokens,tokens\n1,2\n", "several columns are called 'tokens'"),
        ("items.csv", "sku,tokens\na,1,2\n", "row 1 has 3 cells, and the header 2"),
        ("items.csv", "sku,tokens\na,1\nb,\n", "row 2, field 'tokens' is empty"),
        ("items.csv", "tokens\n1 2\n1.5\n", "row 2, field 'tokens': '1.5' is no token"),
        ("items.jsonl", "no json", "row 1 is no JSON (Expecting value"),
        ("items.jsonl", '{"tokens": [1]}\n{"tokens": [2', "row 2 is no JSON"),
        ("items.jsonl", '[{"tokens": [1, 2]}]', "row 1 is no object with fields"),
        ("items.jsonl", '{"tokens": [1]}\n{"token": [2]}\n', "row 2 has no field ['tokens'], only ['token']"),
        ("items.jsonl", '{"tokens": [1]}\n{"tokens": null}\n', "row 2, field 'tokens' is empty"),
        ("items.jsonl", '{"tokens": [1, null]}\n', "row 1, field 'tokens': None is no token"),
        ("items.jsonl", '{"tokens": [1, 2.5]}\n', "row 1, field 'tokens': 2.5 is no token"),
        ("items.csv", "tokens\n", "no sequences"),
        ("items.csv", "", "no sequences"),
        ("items.csv.gz", b"tokens\n", "was cut off, or is no gzip file"),
        (
            "items.csv.gz",
            gzip.compress(b"tokens\n" + b"1 2\n" * 9999, mtime=0)[:-20],
            "was cut off, or is no gzip file",
        ),
        ("items.parquet", b"PAR1", "items.parquet"),
        ("items.npy", b"", "items.npy"),
        ("items.npy", b"\x93NUMPY\x01\x00", "items.npy"),
        ("items.txt", "1 2", ".txt is none of"),
        ("items.npy.gz", "1 2", ".npy.gz is none of"),
        (None, None, "No such file"),
    ],
)
def test_what_cannot_be_built_is_one_line_and_exit_code_1(tmp_path, name, content, message):
    if name:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    source = tmp_path / (name or "none.csv")
    assert message in fails_in_one_line("build", source, tmp_path / "index", "--vocab-size", VOCAB)
    assert not (tmp_path / "index").exists()


def test_an_id_that_is_not_there_is_named(tmp_path):
    (tmp_path / "items.csv").write_text("sku,tokens\na,1 2\n,3\n")
    arguments = ("build", tmp_path / "items.csv", tmp_path / "index", "--vocab-size", VOCAB, "--id", "sku")
    assert "row 2, field 'sku' is empty" in fails_in_one_line(*arguments)


def test_a_parquet_file_that_was_cut_off_or_repeats_a_column_is_named(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "items.parquet"
    arguments = ("build", path, tmp_path / "index", "--vocab-size", VOCAB)
    parquet.write_table(pyarrow.table([[[1, 2]], [[3]]], names=["tokens", "tokens"]), path)
    assert "several columns are called 'tokens'" in fails_in_one_line(*arguments)
    parquet.write_table(pyarrow.table({"tokens": [[1, 2]] * 500}), path)
    path.write_bytes(path.read_bytes()[:-9])
    assert "was cut off, or is no parquet file" in fails_in_one_line(*arguments)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    write(tmp_path, "csv")
    (tmp_path / "file").write_text("")
    arguments = ("build", tmp_path / "items.csv", tmp_path / "file", "--vocab-size", VOCAB)
    assert f"{tmp_path / 'file'}: " in fails_in_one_line(*arguments)


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
    assert "No static_index.safetensors" in fails_in_one_line(command, tmp_path)
    assert "is no folder here" in fails_in_one_line(command, tmp_path / "missing")


@pytest.mark.parametrize("command", ["inspect", "check"])
def test_an_index_that_was_cut_off_is_one_line(tmp_path, command):
    StaticIndex.build([tokens for _, tokens in ROWS], vocab_size=VOCAB).save_pretrained(tmp_path)
    (tmp_path / "static_index.json").write_text("[]")
    assert "does not describe" in fails_in_one_line(command, tmp_path)
    tensors = tmp_path / "static_index.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-50])
    assert "is cut off" in fails_in_one_line(command, tmp_path)


def test_check_fails_an_index_with_an_altered_id(tmp_path):
    names = [f"sku-{row:06d}" for row in range(2000)]
    tokens = np.random.default_rng(0).integers(0, VOCAB, (2000, 4))
    StaticIndex.build(tokens, vocab_size=VOCAB, item_ids=names).save_pretrained(tmp_path)
    path = tmp_path / "static_index.safetensors"
    path.write_bytes(path.read_bytes().replace(b"sku-000777", b"sku-999999"))
    assert "fingerprint" in fails_in_one_line("check", tmp_path)
