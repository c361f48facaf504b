"""`lmcodec measure --field`: texts in JSON lines, Parquet, Arrow and datasets that were saved on disk."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_lm_codec import model_file, run  # noqa: F401

import lmcodec
from lmcodec.lm import store
from lmcodec.measure.bpb import Meter
from lmcodec.measure.records import field_texts, find_tables
from lmcodec.measure.texts import Problem

TEXTS = ["one line and another\n" * 9, "é 漢字 \0 and zero bytes", "short", "🙂 and \u2028 separators"]
WITHOUT = [TEXTS[0], None, TEXTS[1], "", TEXTS[2], TEXTS[3]]
ROWS = [1, 3, 5, 6]  # that hold a text, from 1 on
RECORDS = [{"id": i, "text": text, "meta": {"text": text}} for i, text in enumerate(WITHOUT)]
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()


@pytest.fixture(autouse=True)
def in_folder(
    model_file: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(store.MODEL_VARIABLE, str(model_file))
    monkeypatch.delenv("LMCODEC_LEVEL", raising=False)


def write(name: str, data: bytes) -> str:
    Path(name).write_bytes(data)
    return name


def texts_in(name: str, field: str = "text", *share: int) -> list[tuple[int, bytes | None]]:
    with open(name, "rb") as file:
        return list(field_texts(file, field, *share))


EXPECTED = [(i, None if text is None else text.encode()) for i, text in enumerate(WITHOUT)]


def measured(capfd: pytest.CaptureFixture[str], *arguments: Any, status: int = 2) -> dict[str, Any]:
    assert run("measure", "--json", *arguments) == status
    return json.loads(capfd.readouterr().out)


# What is read


PACKED = {
    "plain": lambda data: data,
    "bom": lambda data: b"\xef\xbb\xbf" + data,
    "blank lines, CRLF, no end": lambda data: b"\r\n \n" + data.replace(b"\n", b"\r\n\n").rstrip(),
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "lmz": lambda data: lmcodec.compress(data, 1),
}


@pytest.mark.parametrize("form", PACKED)
def test_json_lines(form: str) -> None:
    name = write("records.jsonl", PACKED[form](LINES))
    assert texts_in(name) == texts_in(name, "meta.text") == EXPECTED
    shares = [texts_in(name, "text", share, 4) for share in range(4)]
    assert sorted(row for rows in shares for row in rows) == EXPECTED
    assert [number % 4 for number, _ in shares[1]] == [1, 1]


def tables(folder: Path) -> dict[str, Path]:
    """The records in every form of pyarrow's, in several batches, and with other types of text."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.Table.from_pylist(RECORDS)
    large = table.set_column(1, "text", table["text"].cast(pyarrow.large_string()))
    categories = table.set_column(1, "text", table["text"].dictionary_encode())
    found = {}
    for name, content in {"plain": table, "large": large, "categories": categories}.items():
        found[f"{name}.parquet"] = folder / f"{name}.parquet"
        parquet.write_table(content, folder / f"{name}.parquet", row_group_size=2)
        for form in ("stream", "file"):
            found[f"{name}.{form}"] = folder / f"{name}.{form}"
            with getattr(pyarrow.ipc, f"new_{form}")(folder / f"{name}.{form}", content.schema) as writer:
                for batch in content.to_batches(max_chunksize=2):
                    writer.write_batch(batch)
    return found


def test_parquet_and_arrow(tmp_path: Path) -> None:
    for name, path in tables(tmp_path).items():
        for field in ("text", "meta.text"):
            assert texts_in(str(path), field) == EXPECTED, name
            shares = [texts_in(str(path), field, share, 4) for share in range(4)]
            assert sorted(row for rows in shares for row in rows) == EXPECTED, name


def test_names_with_dots_and_records_that_are_null() -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    records = [{"a.b": "x", "a": {"b": "no", "c": "y"}}, {"a.b": None, "a": None}]
    parquet.write_table(pyarrow.Table.from_pylist(records), "dots.parquet")
    write("dots.jsonl", "".join(json.dumps(record) + "\n" for record in records).encode())
    for name in ("dots.parquet", "dots.jsonl"):
        assert texts_in(name, "a.b") == [(0, b"x"), (1, None)]
        assert texts_in(name, "a.c") == [(0, b"y"), (1, None)]


def test_json_lines_need_no_library() -> None:
    name = write("records.jsonl", LINES)
    code = (
        "import sys; from lmcodec.measure.records import field_texts; "
        f"print(len(list(field_texts(open({name!r}, 'rb'), 'text')))); "
        "print({'pyarrow', 'datasets', 'pandas'} & {*sys.modules})"
    )
    assert subprocess.check_output([sys.executable, "-c", code]).split() == [b"6", b"set()"]


def test_without_pyarrow_a_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write("x.parquet", b"PAR1 and more")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert run("measure", "--field", "text", "--level", "1", "x.parquet") == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line == "lmcodec: x.parquet: Arrow and Parquet files need pyarrow (pip install 'lmcodec[arrow]')"


# What is measured


@pytest.mark.parametrize("options", [["--level", "1"], [], ["--network-only"]], ids=str)
def test_each_row_is_a_document(options: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    name = write("records.jsonl", LINES)
    found = measured(capfd, "--field", "text", *options, name)
    (entry,) = found["files"]
    level: dict[str, Any] = {"level": 1} if options[:1] == ["--level"] else {}
    meter = Meter(**level, network_only="--network-only" in options)
    expected = [meter.measure([text.encode()]) for text in TEXTS]
    assert [d["row"] for d in entry["documents"]] == ROWS
    for document, m in zip(entry["documents"], expected, strict=True):
        assert document["nbytes"] == m.nbytes
        assert document["frame_nbytes"] == m.frame_nbytes
        assert document["network_bits"] == (m.network_bits and round(m.network_bits, 3))
    assert found["total"]["nbytes"] == sum(len(text.encode()) for text in TEXTS)
    assert found["settings"]["field"] == "text"


def test_what_is_left_out_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    name = write("records.jsonl", LINES)
    write("full.jsonl", b'{"text": "a text"}\n')
    write("nulls.jsonl", b'{"text": null}\n' * 3)
    write("empty.jsonl", b"")
    level = ["--level", "1"]
    assert run("measure", "--field", "text", *level, name, "full.jsonl", "nulls.jsonl", "empty.jsonl") == 2
    out, err = capfd.readouterr()
    assert err.splitlines() == [
        "lmcodec: records.jsonl: 2 of 6 rows hold no text (null or empty), left out",
        "lmcodec: nulls.jsonl: 3 of 3 rows hold no text (null or empty), left out",
        "lmcodec: empty.jsonl: is empty, left out",
    ]
    head, first, second, total = out.splitlines()
    assert head.split()[:2] == ["Documents", "Bytes"]
    assert (first.split()[0], second.split()[0], total.split()[0]) == ("4", "1", "5")
    assert run("measure", "--field", "text", "--csv", *level, name) == 2
    rows = list(csv.DictReader(io.StringIO(capfd.readouterr().out)))
    assert [row["document"] for row in rows if row["kind"] == "document"] == [str(row) for row in ROWS]
    assert run("measure", "--field", "text", *level, "full.jsonl") == 0


def test_several_processes_give_the_same(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmcodec.cli import measure as command

    monkeypatch.setattr(command, "_SEVERAL_NBYTES", 100)
    names = [write("records.jsonl", LINES), *(str(path) for path in tables(tmp_path).values())][:2]
    for chosen in ([names[0]], names):
        outs = []
        for jobs in (1, 3):
            found = measured(capfd, "--field", "text", "--level", "1", "--jobs", jobs, *chosen)
            outs.append(found)
        assert outs[0] == outs[1]
        assert [d["row"] for d in outs[0]["files"][0]["documents"]] == ROWS


def test_standard_input() -> None:
    command = [sys.executable, "-I", "-m", "lmcodec", "measure", "--json", "--level", "1", "--field", "text"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("LMCODEC")}
    done = subprocess.run(command, input=gzip.compress(LINES, mtime=0), capture_output=True, env=environment)
    assert done.returncode == 2, done.stderr
    assert [d["row"] for d in json.loads(done.stdout)["files"][0]["documents"]] == ROWS


@pytest.mark.parametrize("name", ["plain.stream", "plain.parquet"])
def test_arrow_in_a_pipe(name: str, tmp_path: Path) -> None:
    data = tables(tmp_path)[name].read_bytes()
    command = [sys.executable, "-I", "-m", "lmcodec", "measure", "--level", "1", "--field", "text", "-"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("LMCODEC")}
    done = subprocess.run(command, input=data, capture_output=True, env=environment)
    assert done.returncode == (2 if name == "plain.stream" else 1)
    (line,) = done.stderr.decode().splitlines()
    assert ("2 of 6 rows" if name == "plain.stream" else "is to be read from a file") in line


# Folders


def test_datasets_on_disk(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A dataset and a dictionary of datasets as the library saves them, in a process of its own."""
    pytest.importorskip("datasets")
    code = """if True:
        import json, sys
        from datasets import Dataset, DatasetDict
        texts = json.loads(sys.argv[1])
        ds = Dataset.from_dict({"id": list(range(len(texts))), "text": texts})
        ds.save_to_disk("one", num_shards=2)
        ds.filter(lambda row: row["id"] % 2 == 0).save_to_disk("even")  # by indices, which are resolved
        DatasetDict({"train": ds, "test": ds.select([0])}).save_to_disk("several")
        ds.to_parquet("table.parquet")
        ds.to_json("table.jsonl")
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    subprocess.run([sys.executable, "-c", code, json.dumps(WITHOUT)], check=True, env=environment)
    write("one/cache-0123.arrow", b"another")
    level = ["--level", "1", "--field", "text"]
    whole = measured(capfd, *level, "one")
    assert [entry["file"] for entry in whole["files"]] == [
        os.path.join("one", f"data-0000{i}-of-00002.arrow") for i in range(2)
    ]
    assert [d["row"] for entry in whole["files"] for d in entry["documents"]] == [1, 3, 2, 3]
    for name in ("table.parquet", "table.jsonl"):
        found = measured(capfd, *level, name)
        for key in ("nbytes", "frame_nbytes", "mix_bits"):
            assert found["total"][key] == pytest.approx(whole["total"][key], abs=0.01)
        assert found["total"]["nbytes"] == sum(len(text.encode()) for text in TEXTS)
    several = measured(capfd, *level, "several")
    assert [len(entry["documents"]) for entry in several["files"]] == [1, 4]
    (even,) = measured(capfd, *level, "even", status=0)["files"]
    assert [d["nbytes"] for d in even["documents"]] == [len((WITHOUT[i] or "").encode()) for i in (0, 2, 4)]


def test_folders_hold_records_and_descriptions(tmp_path: Path) -> None:
    (tmp_path / "set" / "deeper").mkdir(parents=True)
    for name in ("README.md", "dataset_infos.json", "a.json", "b.jsonl.gz", "deeper/c.parquet", "d.txt"):
        write(f"set/{name}", b"")
    write("set/state.json", b"[not of datasets")
    found = list(find_tables(("set",)))
    assert found == [
        os.path.join("set", *name.split("/")) for name in ("a.json", "b.jsonl.gz", "deeper/c.parquet")
    ]
    write("set/state.json", json.dumps({"_data_files": [{"filename": "x.arrow"}]}).encode())
    write("set/x.arrow", b"")
    assert [p for p in find_tables(("set",)) if "deeper" not in str(p)] == [os.path.join("set", "x.arrow")]
    old = {"_data_files": [{"filename": "x.arrow"}], "_indices_data_files": [{"filename": "i.arrow"}]}
    write("set/state.json", json.dumps(old).encode())
    assert any(isinstance(p, Problem) and "index of its rows" in p.message for p in find_tables(("set",)))
    os.mkdir("none")
    write("none/README.md", b"")
    (problem,) = find_tables(("none",))
    assert isinstance(problem, Problem)
    assert problem.message.startswith("holds no file of records")


# What is refused


REFUSED = {
    b'{"text": "a"}\n{"texts": "b", "id": 3}\n': "line 2: there is no field 'text'; there is texts, id",
    b'{"text": "a"}\n\n{"text": 12}\n': "line 3: field 'text' holds a number, expected text",
    b'{"text": ["a"]}\n': "line 1: field 'text' holds a list, expected text",
    b'{"text": true}\n': "line 1: field 'text' holds true or false, expected text",
    b'["text"]\n': "line 1: holds a list, expected a record with field 'text'",
    b"null\n": "line 1: holds null, expected a record with field 'text'",
    b'{"text": "a"\n': "line 1: no JSON: Expecting ',' delimiter",
    b"text,id\n": "line 1: no JSON: Expecting value",
    b'{"text": "\xff"}\n': "line 1: no UTF-8 at its byte 10",
    b'{"text": "a \\ud800 b"}\n': "line 1: field 'text' holds half a character, \\ud800 alone",
    b"[" * 200_000: "line 1: nested too deeply",
    b"{}\n": "line 1: there is no field 'text'; there is none",
    b'{"text": 1' + b"0" * 5000 + b"}\n": "line 1: no JSON: Exceeds the limit",
    gzip.compress(LINES, mtime=0)[:60]: "cannot be decompressed: EOFError",
    gzip.compress(LINES, mtime=0)[:40]
    + b"damaged"
    + gzip.compress(LINES, mtime=0)[47:]: "cannot be decompressed: ",
    lzma.compress(LINES)[:40] + b"damaged" + lzma.compress(LINES)[47:]: "cannot be decompressed: ",
    lmcodec.compress(LINES, 1)[:-20]: "",
    b"\x28\xb5\x2f\xfd and more": "is compressed by zstd, which is not read here",
    b"PAR1 and no more": "cannot be read by pyarrow: Arrow",
    b"ARROW1\0\0 and no more": "cannot be read by pyarrow: Arrow",
    b"\xff\xff\xff\xff\x10\0\0\0 and": "cannot be read by pyarrow: ",
}


@pytest.mark.parametrize("data", REFUSED, ids=lambda data: repr(data[:20]))
def test_what_cannot_be_read_is_said_in_a_line(data: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    if "pyarrow" in REFUSED[data]:
        pytest.importorskip("pyarrow")
    assert run("measure", "--field", "text", "--level", "1", write("x", data)) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"lmcodec: x: {REFUSED[data]}")
    assert "internal error" not in line


def test_fields_of_tables_that_are_refused(tmp_path: Path) -> None:
    path = str(tables(tmp_path)["plain.parquet"])
    for field, message in {
        "txt": "there is no field 'txt'; there is id, text, meta",
        "id": "field 'id' holds int64, expected text",
        "meta": "field 'meta' holds struct<text: string>, expected text",
        "meta.txt": "there is no field 'meta.txt'; there is text",
        "text.x": "there is no field 'text.x': 'text' holds string, no records",
    }.items():
        with pytest.raises(lmcodec.LmcodecError) as caught:
            texts_in(path, field)
        assert message in str(caught.value)


def test_options_that_do_not_go_together(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("measure", "--field", "text", "--split-documents", write("x", LINES)) == 1
    assert "--field and --split-documents do not go together" in capfd.readouterr().err
