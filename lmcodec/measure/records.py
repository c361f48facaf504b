"""Texts in records: a field of JSON lines, of Parquet and of Arrow files, as Hugging Face datasets keep them.

What a file is its first bytes say, not its name. JSON lines need nothing but the standard library and may be
compressed by gzip, bzip2, xz or lmcodec itself; the others need pyarrow, which is imported when the first of
them is read. Rows are read a batch at a time.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import zlib
from collections.abc import Iterator
from typing import IO, Any, BinaryIO, cast

from lmcodec.errors import ConfigError, Corrupt, LmcodecError, Unsupported, reason_of
from lmcodec.frame import MAGIC
from lmcodec.measure.texts import Problem, find_files, in_folder

_ROWS = 1024  # of a batch of Parquet
_SHOWN = 12  # names of fields in a message
_SUFFIXES = (".arrow", ".parquet", ".jsonl", ".ndjson", ".json")
_PACKED_SUFFIXES = (".gz", ".bz2", ".xz", ".lmz")
# What a dataset's folder says of itself, in JSON.
_DESCRIPTIONS = {"dataset_info.json", "dataset_dict.json", "dataset_infos.json", "state.json"}
_PARQUET, _ARROW_FILE, _ARROW_STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"
_ZSTANDARD = b"\x28\xb5\x2f\xfd"


# Files


def find_tables(operands: tuple[str, ...]) -> Iterator[str | Problem]:
    """The files of operands as `texts.find_files`, but in folders only those that may hold records.

    In a folder that `Dataset.save_to_disk` of Hugging Face datasets wrote these are the files that it names:
    others, such as caches, hold other rows.
    """
    for operand in operands:
        if os.path.isdir(operand):
            yield from _in_folder(operand)
        else:
            yield from find_files((operand,))


def _in_folder(folder: str) -> Iterator[str | Problem]:
    found = False
    named: dict[str, set[str] | Problem | None] = {}
    for path in in_folder(folder):
        if isinstance(path, Problem):
            if path.name != folder:
                found = True
                yield path
            continue
        parent, name = os.path.split(path)
        if parent not in named:
            named[parent] = _named_files(parent)
            if isinstance(problem := named[parent], Problem):
                found = True
                yield problem
        files = named[parent]
        if isinstance(files, Problem) or not _may_hold_records(name):
            continue
        if files is None or name in files:
            found = True
            yield path
    if not found:
        yield Problem(folder, "holds no file of records (.arrow, .parquet, .jsonl or .json)")


def _may_hold_records(name: str) -> bool:
    stem, suffix = os.path.splitext(name)
    return (stem if suffix in _PACKED_SUFFIXES else name).endswith(_SUFFIXES) and name not in _DESCRIPTIONS


def _named_files(folder: str) -> set[str] | Problem | None:
    """The files that a folder of `save_to_disk` says are its own; None for another folder."""
    try:
        with open(os.path.join(folder, "state.json"), "rb") as file:
            state = json.load(file)
        names = {entry["filename"] for entry in state["_data_files"]}
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None
    if state.get("_indices_data_files") or state.get("_indices_files"):
        return Problem(folder, "is a dataset with an index of its rows, of old versions: save it anew")
    return names


# Rows


def field_texts(
    file: IO[bytes], field: str, share: int = 0, n_share: int = 1
) -> Iterator[tuple[int, bytes | None]]:
    """The texts of a file's rows, in UTF-8, each with its row's number; None where a row has null.

    Args:
        file: buffered, at its beginning. Parquet and files (not streams) of Arrow need `seek`.
        field: a name; `a.b` is field `b` of the records in field `a`, unless a field has this very name.
        share, n_share: only rows whose number is `share` modulo `n_share`.

    Raises:
        ConfigError: there is no such field, it holds no texts, or pyarrow is needed and not installed.
        Corrupt, Unsupported: the file cannot be read.
    """
    head = file.peek(8)[:8]  # type: ignore[attr-defined]
    if head.startswith((_PARQUET, _ARROW_FILE, _ARROW_STREAM)):
        return _arrow_texts(file, head, field, share, n_share)
    return _json_texts(_unpacked(file, head), field, share, n_share)


def _unpacked(file: IO[bytes], head: bytes) -> IO[bytes]:
    if head.startswith(b"\x1f\x8b"):
        return gzip.open(file)  # type: ignore[return-value]
    if head.startswith(b"BZh"):
        return bz2.open(file)
    if head.startswith(b"\xfd7zXZ\0"):
        return lzma.open(file)
    if head.startswith(MAGIC):
        from lmcodec.file import LMFile

        return cast("IO[bytes]", LMFile(cast("BinaryIO", file), "rb"))
    if head.startswith(_ZSTANDARD):
        raise Unsupported("is compressed by zstd, which is not read here: decompress it first")
    return file


def _json_texts(file: IO[bytes], field: str, share: int, n_share: int) -> Iterator[tuple[int, bytes | None]]:
    lines = enumerate(file, 1)
    number = -1  # of the row; blank lines are none
    while True:
        try:
            line_number, line = next(lines, (0, b""))
        except LmcodecError:
            raise
        except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise Corrupt(f"cannot be decompressed: {reason_of(error)}") from None
        if not line_number:
            return
        if line_number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            continue
        number += 1
        if number % n_share == share:
            yield number, _json_text(line, field, f"line {line_number}")


def _json_text(line: bytes, field: str, where: str) -> bytes | None:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Corrupt(f"{where}: no UTF-8 at its byte {error.start}") from None
    except RecursionError:
        raise Corrupt(f"{where}: nested too deeply") from None
    except ValueError as error:
        raise Corrupt(f"{where}: no JSON: {error} (JSON lines hold a record on every line)") from None
    value: Any = record
    for name in [field] if isinstance(record, dict) and field in record else field.split("."):
        if value is None and record is not None:
            return None
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: holds {_kind(value)}, expected a record with field {field!r}")
        if name not in value:
            raise ConfigError(f"{where}: {_no_field(field, value)}")
        value = value[name]
    if value is None:
        return None
    if not isinstance(value, str):
        raise ConfigError(f"{where}: field {field!r} holds {_kind(value)}, expected text")
    try:
        return value.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"half a character, \\u{ord(value[error.start]):04x}"
        raise Corrupt(f"{where}: field {field!r} holds {half} alone, which is no text") from None


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    kinds = {dict: "a record", list: "a list", str: "text", int: "a number", float: "a number"}
    return kinds.get(type(value), "null")


def _no_field(field: str, names: Any) -> str:
    """What a message says of a field that is not there."""
    names = [str(name) for name in names]
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    return f"there is no field {field!r}; there is {shown or 'none'}"


def _arrow_texts(
    file: IO[bytes], head: bytes, field: str, share: int, n_share: int
) -> Iterator[tuple[int, bytes | None]]:
    try:
        import pyarrow
    except ImportError:
        raise ConfigError("Arrow and Parquet files need pyarrow (pip install 'lmcodec[arrow]')") from None
    if not head.startswith(_ARROW_STREAM) and not file.seekable():
        raise Unsupported("is to be read from a file: from a pipe, JSON lines and streams of Arrow are")
    number = 0
    try:
        for column in _columns(file, head, field):
            for at in range((share - number) % n_share, len(column), n_share):
                yield number + at, column[at].as_py()
            number += len(column)
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise Corrupt(f"cannot be read by pyarrow: {reason_of(error)}") from None


def _columns(file: IO[bytes], head: bytes, field: str) -> Iterator[Any]:
    """The field's column of each batch, as bytes."""
    import pyarrow

    batches: Any
    if head.startswith(_PARQUET):
        import pyarrow.parquet

        table = pyarrow.parquet.ParquetFile(file)
        path = _path(table.schema_arrow, field)
        batches = table.iter_batches(_ROWS, columns=[path[0] if len(path) == 1 else field])
    else:
        if head.startswith(_ARROW_STREAM):
            table = batches = pyarrow.ipc.open_stream(file)
        else:
            table = pyarrow.ipc.open_file(file)
            batches = map(table.get_batch, range(table.num_record_batches))
        path = _path(table.schema, field)
    for batch in batches:
        column = batch.column(batch.schema.get_field_index(path[0]))
        for name in path[1:]:
            # A record that is null has null fields.
            column = pyarrow.compute.struct_field(column, name)
        if pyarrow.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        yield column.cast(pyarrow.large_binary())


def _path(schema: Any, field: str) -> list[str]:
    """The names that lead to a field of texts, from the outermost on."""
    import pyarrow
    import pyarrow.compute

    path = [field] if field in schema.names else field.split(".")
    names: list[str] = schema.names
    kind: Any = None
    for depth, name in enumerate(path):
        if name not in names:
            raise ConfigError(_no_field(field, names))
        if names.count(name) > 1:
            raise ConfigError(f"{names.count(name)} fields are called {name!r}")
        kind = (schema if kind is None else kind).field(name).type
        if depth < len(path) - 1:
            if not pyarrow.types.is_struct(kind):
                raise ConfigError(f"there is no field {field!r}: {name!r} holds {kind}, no records")
            names = [kind.field(i).name for i in range(kind.num_fields)]
    values = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    types = pyarrow.types
    is_view = getattr(types, "is_string_view", lambda kind: False)
    if not (
        types.is_string(values) or types.is_large_string(values) or is_view(values) or types.is_null(values)
    ):
        raise ConfigError(f"field {field!r} holds {kind}, expected text (string)")
    return path
