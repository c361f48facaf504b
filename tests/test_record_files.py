"""RecordStore: records by number, appends, crashes, damage; `lmcodec records`."""

from __future__ import annotations

import hashlib
import json
import os
import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from test_priors import events

import lmcodec
from lmcodec.codec import records as records_module
from lmcodec.codec.prior import Prior
from lmcodec.codec.records import RecordStore
from lmcodec.errors import (
    BadMagic,
    Corrupt,
    LimitExceeded,
    LmcodecError,
    PriorNotFound,
    Truncated,
    Unsupported,
)

RECORDS = [*events(20, seed=4), b"", b"x", random.Random(2).randbytes(300), b"a" * 3000]


@pytest.fixture(scope="module")
def prior() -> Prior:
    return Prior(b"\n".join(events(40)) + b"\n", level=1)


@pytest.fixture
def path(tmp_path: Path, prior: Prior) -> Path:
    """A file of RECORDS in three groups."""
    path = tmp_path / "r.lmrec"
    with RecordStore(path, "x", prior=prior, level=1) as store:
        store.extend(RECORDS[:10])
        store.flush()
        store.extend(RECORDS[10:22])
        store.flush()
        store.extend(RECORDS[22:])
    return path


def test_records_come_back(path: Path) -> None:
    with RecordStore(path) as store:
        assert len(store) == len(RECORDS)
        assert list(store) == RECORDS
        for k in random.Random(1).sample(range(len(RECORDS)), len(RECORDS)):
            assert store[k] == RECORDS[k]
            assert store.sizes(k)[0] == len(RECORDS[k])
        assert store[-1] == RECORDS[-1]
        assert store.verify() == len(RECORDS)
        assert sum(store.sizes(k)[1] for k in range(20)) < 0.3 * sum(map(len, RECORDS[:20]))
        for k in (len(RECORDS), -len(RECORDS) - 1, 1 << 70):
            with pytest.raises((IndexError, ValueError)):
                store[k]
        with pytest.raises(TypeError):
            store["1"]  # type: ignore[index]
        with pytest.raises(ValueError, match="open for reading"):
            store.append(b"x")
    with pytest.raises(ValueError, match="closed"):
        store[0]


def test_appends(path: Path) -> None:
    with RecordStore(path, "a") as store:
        assert store.append(b"one more") == len(RECORDS)
        assert store[-1] == b"one more"  # before it is written, too
        store.extend([b"%d" % i for i in range(300)])
        assert len(store) == len(RECORDS) + 301
        with pytest.raises(LimitExceeded):
            store.append(bytes(records_module.MAX_RECORD_NBYTES + 1))
    with RecordStore(path) as store:
        assert list(store) == [*RECORDS, b"one more", *[b"%d" % i for i in range(300)]]


def test_a_prior_that_is_not_embedded(tmp_path: Path, prior: Prior) -> None:
    path = tmp_path / "r"
    with RecordStore(path, "x", prior=prior, embed=False) as store:
        store.append(RECORDS[0])
    assert path.stat().st_size < 120
    with pytest.raises(PriorNotFound, match=prior.id.hex()):
        RecordStore(path)
    with pytest.raises(PriorNotFound):
        RecordStore(path, prior=Prior(b"another", level=1))
    with RecordStore(path, prior=[Prior(b"another", level=1), prior]) as store:
        assert store[0] == RECORDS[0]


def test_a_level_with_a_network(tmp_path: Path) -> None:
    prior = Prior(b"\n".join(events(10)) + b"\n")
    with RecordStore(tmp_path / "r", "x", prior=prior) as store:
        store.extend(RECORDS[:4])
    with RecordStore(tmp_path / "r") as store:
        assert list(store) == RECORDS[:4]


def test_arguments(tmp_path: Path, path: Path, prior: Prior) -> None:
    with pytest.raises(ValueError, match="mode"):
        RecordStore(path, "w")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one prior"):
        RecordStore(tmp_path / "n", "x")
    with pytest.raises(ValueError, match="not for level 6"):
        RecordStore(tmp_path / "n", "x", prior=prior, level=6)
    with pytest.raises(ValueError, match="level"):
        RecordStore(path, level=1)
    assert not (tmp_path / "n").exists()
    with pytest.raises(FileExistsError):
        RecordStore(path, "x", prior=prior)
    with pytest.raises(FileNotFoundError):
        RecordStore(tmp_path / "n")


def test_every_end_that_a_crash_can_leave(path: Path, prior: Prior) -> None:
    """Cut anywhere inside the last flush the file opens, has what was flushed before, and takes appends."""
    whole = path.read_bytes()
    with RecordStore(path) as store:
        begin = store._groups[-1].offset - records_module._GROUP.size - 4
        assert store._groups[-1].end == len(whole)
    for length in range(begin, len(whole)):
        for filled in (whole[:length], whole[:length] + bytes(len(whole) - length)):
            path.write_bytes(filled)
            before = RECORDS[:22]
            try:
                store = RecordStore(path, prior=prior)
            except Corrupt:
                # Zeros in part of a group's head, or of its data where they end otherwise: damage, as far as
                # anybody can tell.
                assert filled != whole[:length]
                continue
            with store:
                if filled == whole:
                    before = RECORDS
                assert len(store) == len(before)
                assert length % 30 or list(store) == before
                assert store.incomplete_nbytes == (0 if filled == whole else len(filled) - begin)
                if store.incomplete_nbytes:
                    with pytest.raises(Truncated, match="22 records before are sound"):
                        store.verify()
    path.write_bytes(whole[:-3])
    with RecordStore(path, "a") as store:
        store.append(b"after the crash")
    with RecordStore(path) as store:
        assert list(store) == [*RECORDS[:22], b"after the crash"]
        assert store.verify() == 23


def test_killed_while_appending(path: Path) -> None:
    """What a process flushed is there after it was killed at any time."""
    code = (
        "import sys, lmcodec\n"
        "store = lmcodec.RecordStore(sys.argv[1], 'a')\n"
        "for i in range(10_000):\n"
        "    store.append(b'record %d' % i)\n"
        "    if i % 7 == 0: store.flush(); print(len(store), flush=True)\n"
    )
    for n_line in (3, 12):
        with RecordStore(path) as store:
            before = len(store)
        with subprocess.Popen(
            [sys.executable, "-I", "-c", code, str(path)], stdout=subprocess.PIPE, encoding="utf-8"
        ) as process:
            assert process.stdout is not None
            flushed = [int(process.stdout.readline()) for _ in range(n_line)][-1]
            process.kill()
        with RecordStore(path, "a") as store:
            assert len(store) >= flushed > before
            assert list(store)[:before] == [*RECORDS, *list(store)[len(RECORDS) : before]]
            assert store.verify() == len(store)


def test_a_write_that_fails_leaves_what_was_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RecordStore(path, "a") as store:
        store.append(b"waits")
        real = store._write

        def half(data: bytes) -> None:
            real(data[: len(data) // 2])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(store, "_write", half)
        with pytest.raises(OSError, match="No space"):
            store.flush()
        with RecordStore(path) as other:
            assert list(other) == RECORDS
            assert other.incomplete_nbytes == 0
        monkeypatch.undo()
    with RecordStore(path) as store:
        assert list(store) == [*RECORDS, b"waits"]


def outcome(data: bytes, path: Path, prior: Prior) -> list[bytes] | None:
    path.write_bytes(data)
    try:
        with RecordStore(path, prior=prior) as store:
            found = list(store)
            store.verify()
            return found
    except LmcodecError as raised:
        error = raised
    assert "\n" not in str(error)
    return None


def test_damage(tmp_path: Path, prior: Prior) -> None:
    """Every bit and every cut: an error, or the records; a cut behind a group: those before."""
    path = tmp_path / "r"
    few = [b"abc", b'{"event": "login"}', b"x" * 40]
    with RecordStore(path, "x", prior=prior, level=1, embed=False) as store:
        store.extend(few[:2])
        store.flush()
        store.append(few[2])
        store.flush()
        ends = [store._groups[0].end, store._groups[1].end]
        head = store._groups[0].offset - records_module._GROUP.size - 4
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        assert outcome(bytes(damaged), path, prior) in (None, few), f"bit {bit}"
    expected = {head: [], ends[0]: few[:2], ends[1]: few}
    for length in range(len(whole)):
        assert outcome(whole[:length], path, prior) == expected.get(length), f"cut at {length}"


def test_one_damaged_record_leaves_the_others(path: Path) -> None:
    with RecordStore(path) as store:
        at = store._place(3)[2]
    damaged = bytearray(path.read_bytes())
    damaged[at] ^= 1
    path.write_bytes(damaged)
    with RecordStore(path) as store:
        with pytest.raises(Corrupt, match="record 3"):
            store[3]
        assert store[2] == RECORDS[2]
        assert store[4] == RECORDS[4]
        with pytest.raises(Corrupt, match="group of records"):
            store.verify()


def group(n: int, table: bytes, data: bytes, **sizes: int) -> bytes:
    """A group whose checks hold, whatever it says."""
    head = struct.pack(
        "<BIIII",
        0x47,
        n,
        sizes.get("n_table", len(table)),
        sizes.get("n_data", len(data)),
        zlib.crc32(table + data),
    )
    return head + struct.pack("<I", zlib.crc32(head)) + table + data


def test_hostile_files(tmp_path: Path, prior: Prior) -> None:
    path = tmp_path / "r"
    RecordStore(path, "x", prior=prior, level=1, embed=False).close()
    head = path.read_bytes()
    hostile: list[tuple[bytes, type[LmcodecError]]] = [
        (group(1 << 31, b"\0", b"1234"), Corrupt),
        (group(0, b"", b""), Corrupt),
        (group(1, bytes(1 << 10), b"", n_table=1 << 31), Corrupt),
        (group(1, b"\0", b"", n_data=(1 << 30) + 1), Corrupt),
        (group(2, b"\0\0", b"1234"), Corrupt),  # the data of one record
        (group(1, b"\0\0", b"1234"), Corrupt),  # a table of two
        (group(1, b"\xff", b"1234"), Corrupt),  # cut inside a number
        (group(1, b"\xff\xff\xff\xff\xff\xff\x7f", b"1234"), Corrupt),  # a record of 2^24 bytes
        (group(1, b"\x80\0", b"1234"), Corrupt),  # not the shortest form
        (group(1, b"\4", b"\0" + b"1234"), Corrupt),  # of 2 bytes, which are not there
    ]
    for data, error in hostile:
        path.write_bytes(head + data)
        with pytest.raises(error) as caught, RecordStore(path, prior=prior) as store:
            list(store)
        assert "\n" not in str(caught.value)
    sealed = bytearray(head)
    for at, value, error in (
        (8, 2, Unsupported),
        (12, 3, Unsupported),
        (13, 1, Unsupported),
        (22, 255, Truncated),
    ):
        damaged = sealed.copy()
        damaged[at] = value
        damaged[26:30] = struct.pack("<I", zlib.crc32(damaged[:26]))
        path.write_bytes(damaged)
        with pytest.raises(error):
            RecordStore(path, prior=Prior(b"another", level=1))
    path.write_bytes(b"\xb5LMZ" + head[4:])
    with pytest.raises(BadMagic):
        RecordStore(path)
    assert hashlib.sha256(head).digest() != hashlib.sha256(damaged).digest()


def test_command_line(tmp_path: Path, prior: Prior, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prior.save("p.lmprior")
    Path("some.jsonl").write_bytes(b"\n".join(RECORDS[:10]) + b"\n")
    Path("more").write_bytes(b"\0".join(RECORDS[10:20]))

    def lmcodec_(*arguments: str, status: int = 0) -> bytes:
        group = "from lmcodec.cli.main import main; main()"
        run = subprocess.run([sys.executable, "-I", "-c", group, *arguments], capture_output=True)
        assert run.returncode == status, run.stderr
        assert status == 0 or (run.stderr.count(b"\n") == 1 and b"internal" not in run.stderr), run.stderr
        return run.stdout

    lmcodec_("records", "make", "r", "some.jsonl", "--json-lines", "--prior", "p.lmprior", "--level", "1")
    assert b"20 in all" in lmcodec_("records", "make", "r", "more", "--zero-separated", "--append")
    with lmcodec.RecordStore("r") as store:
        assert list(store) == RECORDS[:20]
    assert lmcodec_("records", "get", "r", "12") == RECORDS[12]
    assert lmcodec_("records", "get", "r", "-1") == RECORDS[19]
    facts = json.loads(lmcodec_("records", "list", "r", "--json", "--each"))
    assert facts["records"] == len(facts["sizes"]) == 20
    assert facts["prior"] == prior.id.hex()
    assert lmcodec_("records", "list", "r", "--each").count(b"\n") == 21
    assert b"20 records are sound" in lmcodec_("records", "verify", "r")
    Path("not").write_bytes(b"not records")
    for wrong in (
        ["make", "r", "some.jsonl", "--prior", "p.lmprior"],  # it is there
        ["make", "n", "some.jsonl"],
        ["make", "n", "some.jsonl", "--prior", "some.jsonl"],
        ["make", "n", "some.jsonl", "--prior", "p.lmprior", "--level", "6"],
        ["make", "r", "more", "--append", "--level", "1"],
        ["make", "missing", "more", "--append"],
        ["make", "r", "more", "--json-lines", "--append"],
        ["get", "r", "20"],
        ["get", "not", "0"],
        ["verify", "not"],
        ["list", "missing"],
    ):
        lmcodec_("records", *wrong, status=1)
    assert not Path("n").exists()
    os.truncate("r", os.path.getsize("r") - 1)
    lmcodec_("records", "verify", "r", status=1)
    assert b"unfinished flush" in lmcodec_("records", "list", "r")
