"""Priors: what messages begin with, compact frames, the files of priors, the command line."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import format_reference
import pytest
from corruption import check_corrupt

import lmcodec
from lmcodec import frame
from lmcodec.codec import prior as prior_module
from lmcodec.codec.prior import Prior
from lmcodec.engine import Engine
from lmcodec.errors import (
    BadMagic,
    Corrupt,
    LimitExceeded,
    LmcodecError,
    PriorNotFound,
    Truncated,
    Unsupported,
)

LEVELS = [1, 2, 6]


def events(n: int, seed: int = 1) -> list[bytes]:
    """Messages that have much in common."""
    rng = random.Random(seed)
    return [
        json.dumps(
            {
                "event": rng.choice(["login", "logout", "purchase", "view"]),
                "user": {"id": rng.randrange(10**6), "name": rng.choice(["ann", "bob", "eve", "zoë"])},
                "at": f"2026-11-{rng.randrange(1, 29):02}T{rng.randrange(24):02}:{rng.randrange(60):02}:00Z",
                "items": [
                    {"sku": rng.randrange(10**4), "n": rng.randrange(9)} for _ in range(rng.randrange(4))
                ],
            },
            ensure_ascii=False,
        ).encode()
        for _ in range(n)
    ]


@pytest.fixture(scope="module")
def prior() -> Prior:
    return Prior(b"\n".join(events(80)) + b"\n")


MESSAGES = [
    *events(12, seed=2),
    b"x",
    b"\n",
    bytes(range(256)),
    b"aaaa" * 500,
    "Grüße, 世界".encode(),
    b"\0" * 9,
]


@pytest.mark.parametrize("level", LEVELS)
def test_messages_come_back(prior: Prior, level: int) -> None:
    frames = [lmcodec.compress(message, level, prior=prior) for message in MESSAGES]
    assert [lmcodec.decompress(packed, prior=prior) for packed in frames] == MESSAGES
    # In another order, by another object of the same prior, and one after another.
    again = Prior.parse(prior.pack())
    order = list(range(len(MESSAGES)))[::-1]
    assert [lmcodec.compress(MESSAGES[i], level, prior=again) for i in order] == [frames[i] for i in order]
    assert lmcodec.decompress(b"".join(frames), prior=again) == b"".join(MESSAGES)


def test_a_message_begins_as_the_second_block_of_a_chain(prior: Prior) -> None:
    """FORMAT.md section 2.6, for the context models: nothing else is carried, and nothing less."""
    for coding, profile in enumerate(prior.profiles):
        engine = Engine(profile)
        for message in MESSAGES:
            engine.reset(1 << prior.tables_log2)
            engine.encode(prior.text)
            assert engine.encode(message) == prior.encode(message, coding)


def test_what_a_message_changes_is_taken_back(prior: Prior) -> None:
    """Also after damage and large messages, and when lines are marked by more epochs than a byte counts."""
    rng = random.Random(5)
    large = rng.randbytes(20_000)
    expected = prior.encode(MESSAGES[0], 0)
    with prior.engine(0) as engine:
        for i in range(270):
            engine.encode(MESSAGES[i % len(MESSAGES)] if i % 100 else large)
            assert engine.rewind()
        assert engine.encode(MESSAGES[0]) == expected
    with pytest.raises(Corrupt), prior.engine(0) as engine:
        engine.decode(b"\xff" * 40, 3000)
    assert prior.encode(MESSAGES[0], 0) == expected


def test_the_networks_state_is_taken_back(prior: Prior) -> None:
    expected = prior.encode(MESSAGES[0], 2)
    for message in (MESSAGES[3], MESSAGES[13], MESSAGES[0]):
        assert prior.decode(prior.encode(message, 2), len(message), 2) == message
    assert prior.encode(MESSAGES[0], 2) == expected


@pytest.mark.parametrize("isa", ["scalar", "avx2"])
def test_frames_are_the_same_on_every_instruction_set(prior: Prior, isa: str, tmp_path: Path) -> None:
    from lmcodec import _kernel

    if isa not in _kernel.network_isas():
        pytest.skip(f"no {isa} here")
    prior.save(tmp_path / "p")
    code = (
        "import lmcodec, sys; p = lmcodec.Prior.load(sys.argv[1]); m = sys.argv[2].encode()\n"
        "print(*[lmcodec.compress(m, level, prior=p).hex() for level in (1, 2, 6)])"
    )
    message = events(1, seed=9)[0].decode()
    run = subprocess.run(
        [sys.executable, "-I", "-c", code, str(tmp_path / "p"), message],
        env={**os.environ, "LMCODEC_ISA": isa, "PYTHONUTF8": "1"},
        capture_output=True,
        check=True,
        encoding="utf-8",
    )
    here = [lmcodec.compress(message.encode(), level, prior=prior).hex() for level in LEVELS]
    assert run.stdout.split() == here


def test_frames_are_frozen() -> None:
    """What a compact frame of each coding is, for ever."""
    golden = Path(__file__).with_name("prior_frames")
    prior = Prior.load(golden / "prior.lmprior")
    frozen = json.loads((golden / "prior.json").read_text(encoding="utf-8"))
    for packed in frozen["frames"]:
        assert lmcodec.decompress(bytes.fromhex(packed), prior=prior) == frozen["message"].encode()
    message = frozen["message"].encode()
    now = [lmcodec.compress(message, level, prior=prior).hex() for level in LEVELS]
    assert [*now, lmcodec.compress(message, 1, prior=prior, short_check=True).hex()] == frozen["frames"]


def test_overhead(prior: Prior) -> None:
    """Beside the payload: at most ten bytes up to 2,046 bytes, with a check of 32 bits."""
    for nbytes in (1, 15, 179, 200, 1000, 2046):
        message = (b"".join(events(20, seed=3)) * 2)[:nbytes]
        payload = min(len(prior.encode(message, 0)), nbytes)
        for short, saved in ((False, 0), (True, 2)):
            packed = lmcodec.compress(message, 1, prior=prior, short_check=short)
            assert len(packed) - payload <= 10 - saved
            assert lmcodec.decompress(packed, prior=prior) == message
    # What does not get smaller is stored.
    noise = random.Random(1).randbytes(900)
    assert len(lmcodec.compress(noise, 1, prior=prior)) <= 910


def test_a_prior_makes_messages_smaller(prior: Prior) -> None:
    message = MESSAGES[0]
    for level in LEVELS:
        assert len(lmcodec.compress(message, level, prior=prior)) < 0.6 * len(
            lmcodec.compress(message, level)
        )


def test_larger_data_and_empty_data_need_no_prior(prior: Prior) -> None:
    for data in (b"", b"".join(events(3000))[: prior_module.MAX_MESSAGE_NBYTES + 1]):
        packed = lmcodec.compress(data, 1, prior=prior)
        assert packed[:4] == frame.MAGIC
        assert lmcodec.decompress(packed) == data


def test_compressor_decompressor_and_files(prior: Prior, tmp_path: Path) -> None:
    message = MESSAGES[0]
    compressor = lmcodec.Compressor(1, prior=prior)
    packed = compressor.compress(message[:50]) + compressor.compress(message[50:]) + compressor.flush()
    assert packed == lmcodec.compress(message, 1, prior=prior)
    assert compressor.position == len(message)
    assert compressor.compress(message) + compressor.flush() == packed  # another frame
    for piece in (1, 7, len(packed)):
        decompressor = lmcodec.Decompressor(prior=[prior])
        out = b"".join(decompressor.decompress(packed[i : i + piece]) for i in range(0, len(packed), piece))
        assert out == message
        assert decompressor.eof
    # A block that a flush ended can be decoded before the frame's end, which no compact frame can be.
    out = compressor.compress(message, compressor.FLUSH_BLOCK)
    assert lmcodec.Decompressor().decompress(out) == message
    compressor.flush()
    path = tmp_path / "m.lmz"
    with lmcodec.open(path, "wb", level=1, prior=prior) as file:
        file.write(message)
    assert path.read_bytes() == packed
    with lmcodec.open(path, prior=prior) as file:
        assert file.read(10) == message[:10]
        file.seek(20)
        assert file.read() == message[20:]


def test_frame_info(prior: Prior) -> None:
    packed = lmcodec.compress(MESSAGES[0], 2, prior=prior)
    info = lmcodec.frame_info(packed)
    assert info.compact is not None
    assert f"{info.compact.short_id:03x}" == prior.id.hex()[:3]
    assert info.original_nbytes == len(MESSAGES[0])
    assert info.nbytes == len(packed)
    assert lmcodec.frame_info(packed[:-1]).nbytes is None or info.blocks


def test_missing_and_wrong_priors_are_one_line(prior: Prior) -> None:
    packed = lmcodec.compress(MESSAGES[0], 1, prior=prior)
    other = Prior(b"something else altogether\n" * 4)
    with pytest.raises(PriorNotFound, match=prior.id.hex()[:3]) as caught:
        lmcodec.decompress(packed)
    assert "\n" not in str(caught.value)
    with pytest.raises(PriorNotFound, match=other.id.hex()):
        lmcodec.decompress(packed, prior=other)
    assert lmcodec.decompress(packed, prior=[other, prior]) == MESSAGES[0]
    # Another prior of the same short id: the check covers the whole id.
    wrong = Prior.parse(prior.pack())
    wrong.id = wrong.id[:2] + bytes(6)
    with pytest.raises(Corrupt, match="another prior"):
        lmcodec.decompress(packed, prior=wrong)
    stored = lmcodec.compress(random.Random(1).randbytes(50), 1, prior=prior)
    with pytest.raises(Corrupt, match="another prior"):
        lmcodec.decompress(stored, prior=wrong)
    with pytest.raises(ValueError, match="same short id"):
        lmcodec.decompress(packed, prior=[prior, wrong])


def test_arguments(prior: Prior) -> None:
    without = Prior(b"text for levels without a model", level=2)
    assert without.levels == [1, 2]
    assert prior.levels == [1, 2, 6, 7, 8, 9]
    with pytest.raises(ValueError, match=r"not for level 6: .* a prior with --level 6"):
        lmcodec.compress(b"x", prior=without)
    with pytest.raises(ValueError, match="not for level 4"):
        lmcodec.compress(b"x", 4, prior=prior)
    with pytest.raises(TypeError, match="prior must be a Prior"):
        lmcodec.compress(b"x", prior=b"text")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="prior must be a Prior"):
        lmcodec.decompress(b"x", prior=[b"text"])  # type: ignore[list-item]
    for given in ({"model": "small"}, {"executor": "numpy"}, {"streams": 4}):
        with pytest.raises(ValueError, match="a prior has its own model"):
            lmcodec.compress(b"x", prior=prior, **given)
    with pytest.raises(ValueError, match="16 bits"):
        lmcodec.compress(b"x", short_check=True)
    for text in (b"", b"x" * ((1 << 20) + 1)):
        with pytest.raises(ValueError, match="a prior's text"):
            Prior(text)
    packed = lmcodec.compress(b"xyz" * 9, 1, prior=prior)
    with pytest.raises(Unsupported, match="executor"):
        lmcodec.decompress(packed, prior=prior, executor="numpy")


def test_limits_hold(prior: Prior) -> None:
    message = b"ab" * 100_000
    packed = lmcodec.compress(message, 1, prior=prior)
    assert packed[0] == frame.COMPACT_MAGIC
    for limit in (
        {"max_output": 1000},
        {"memory_limit": 1 << 20},
        {"max_ratio": 2},
        {"max_cpu_seconds": 1e-9},
    ):
        with pytest.raises(LimitExceeded):
            lmcodec.decompress(packed, prior=prior, **limit)
    assert lmcodec.decompress(packed, prior=prior) == message


def test_sizes_are_one_number() -> None:
    for original in (*range(1, 70), 180, 2047, 1 << 20, frame.MAX_BLOCK_NBYTES):
        for payload in {0, 1, original // 2, original - 1, original}:
            if 0 <= payload <= original:
                packed = frame.pack_sizes(original, payload)
                assert frame.parse_sizes(packed, 0, "") == (original, payload, len(packed))
    assert len(frame.pack_sizes(179, 179)) == 2
    assert len(frame.pack_sizes(2046, 2046)) == 3
    for packed in (b"\0", frame.pack_varint((1 << 24) * ((1 << 24) + 3) // 2 + (1 << 24) + 7)):
        with pytest.raises(Corrupt, match="original size"):
            frame.parse_sizes(packed, 0, "here")


def test_reserved_bits_are_unsupported(prior: Prior) -> None:
    packed = bytearray(lmcodec.compress(MESSAGES[0], 1, prior=prior))
    for bits in (0x08, 0x06):
        damaged = packed.copy()
        damaged[1] |= bits
        with pytest.raises(Unsupported, match="compact frame"):
            lmcodec.decompress(damaged, prior=prior)


@pytest.mark.parametrize("level", [1, 6])
def test_damaged_frames(prior: Prior, level: int) -> None:
    messages = [MESSAGES[0][:60], b"ab", random.Random(3).randbytes(12)]
    frames = [(lmcodec.compress(message, level, prior=prior), message) for message in messages]
    check_corrupt(
        *frames[: 3 if level == 1 else 1],
        decoders=[lambda data: lmcodec.decompress(data, prior=prior, max_output=1 << 14)],
    )


def test_other_checks_would_be_seen(prior: Prior) -> None:
    """A check of 16 bits covers all that one of 32 does."""
    packed = lmcodec.compress(MESSAGES[0], 1, prior=prior, short_check=True)
    passed = 0
    for i in range(300):
        damaged = bytearray(packed)
        damaged[3 + i % (len(packed) - 3)] ^= 1 + i % 255
        with contextlib.suppress(LmcodecError):
            passed += lmcodec.decompress(damaged, prior=prior, max_output=1 << 14) != MESSAGES[0]
    assert passed == 0  # of 300, where one in 65,536 is expected


def test_threads_share_a_prior(prior: Prior) -> None:
    expected = [lmcodec.compress(message, 1, prior=prior) for message in MESSAGES]
    failures: list[object] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(20):
            i = rng.randrange(len(MESSAGES))
            if lmcodec.compress(MESSAGES[i], 1, prior=prior) != expected[i]:
                failures.append(i)
            if lmcodec.decompress(expected[i], prior=prior) != MESSAGES[i]:
                failures.append(i)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


# Files of priors


def sealed(data: bytes) -> bytes:
    """A prior's file with its digest made to fit."""
    body = data[:-32]
    return body + hashlib.sha256(body).digest()


def with_header(packed: bytes, **changes: object) -> bytes:
    """A prior's file whose header says something else, and which is sound otherwise."""
    magic, version, header_nbytes, _ = struct.unpack_from("<8sIIQ", packed)
    header = json.loads(packed[24 : 24 + header_nbytes]) | changes
    header = {key: value for key, value in header.items() if value != "gone"}
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    rest = packed[24 + header_nbytes :]
    return sealed(struct.pack("<8sIIQ", magic, version, len(text), 24 + len(text) + len(rest)) + text + rest)


def test_files_come_back(prior: Prior, tmp_path: Path) -> None:
    path = tmp_path / "app.lmprior"
    prior.save(path)
    found = Prior.load(path)
    assert (found.id, found.text, found.model, found.profiles) == (
        prior.id,
        prior.text,
        prior.model,
        prior.profiles,
    )
    assert os.listdir(tmp_path) == ["app.lmprior"]
    assert Prior(prior.text, level=1).id != prior.id  # other codings


def test_damaged_files() -> None:
    """Every bit and every cut of a prior's file."""
    packed = Prior(b"a text of a prior, a text of a prior\n").pack()
    for bit in range(8 * len(packed)):
        damaged = bytearray(packed)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(LmcodecError) as caught:
            Prior.parse(damaged)
        assert "\n" not in str(caught.value)
    for length in range(len(packed)):
        with pytest.raises((Truncated, Corrupt)):
            Prior.parse(packed[:length])
    with pytest.raises(Corrupt):
        Prior.parse(packed + b"\0")


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"text_nbytes": 1 << 40}, Corrupt),
        ({"text_nbytes": 0}, Corrupt),
        ({"text_nbytes": -1}, Corrupt),
        ({"text_nbytes": True}, Corrupt),
        ({"text_nbytes": 36}, Corrupt),  # another text: the id says so
        ({"tables_log2": 60}, Corrupt),
        ({"tables_log2": 13}, Corrupt),  # other tables: the id says so
        ({"tables_log2": "12"}, Corrupt),
        ({"profiles": []}, Corrupt),
        ({"profiles": [3, -2]}, Corrupt),
        ({"profiles": [3, 30]}, Unsupported),
        ({"profiles": {}}, Corrupt),
        ({"model": {"model_id": "x" * 16, "profile": 1}}, Corrupt),
        ({"model": {"model_id": 7, "profile": 1}}, Corrupt),
        ({"model": {"model_id": "0" * 16, "profile": 99}}, Corrupt),
        ({"model": [1]}, Corrupt),
        ({"card": 1}, Corrupt),
        ({"id": None}, Corrupt),
        ({"id": "0" * 16}, Corrupt),
        ({"more": 1}, Unsupported),
        ({"card": "gone"}, Unsupported),
    ],
)
def test_hostile_headers(changes: dict[str, object], error: type[LmcodecError]) -> None:
    packed = Prior(b"a text of a prior, a text of a prior\n").pack()
    assert Prior.parse(with_header(packed)).text
    with pytest.raises(error) as caught:
        Prior.parse(with_header(packed, **changes))
    assert "\n" not in str(caught.value)


def test_hostile_files() -> None:
    packed = Prior(b"a text of a prior\n").pack()
    for at, value, error in (
        (8, 2, Unsupported),  # the version
        (12, 1 << 31, Corrupt),  # bytes of the header
        (16, 1 << 31, Corrupt),  # bytes of the file
    ):
        damaged = bytearray(packed)
        struct.pack_into("<I", damaged, at, value)
        with pytest.raises(error):
            Prior.parse(sealed(bytes(damaged)))
    with pytest.raises(BadMagic):
        Prior.parse(b"\xb5LMMODEL" + packed[8:])
    deep = b"[" * 50_000
    text = struct.pack("<8sIIQ", prior_module.MAGIC, 1, len(deep), 24 + len(deep) + 32) + deep + bytes(32)
    with pytest.raises(Corrupt, match="canonical"):
        Prior.parse(sealed(text))


def test_a_prior_for_a_model_that_is_not_there() -> None:
    packed = Prior(b"a text of a prior\n").pack()
    header = json.loads(packed[24 : 24 + struct.unpack_from("<I", packed, 12)[0]])
    made = Prior.parse(packed)
    made._set(made.text, made.profiles, made.model._replace(model_id="0" * 16), made.tables_log2, {})  # type: ignore[union-attr]
    other = Prior.parse(made.pack())
    assert header["model"]["model_id"] != "0" * 16
    assert lmcodec.decompress(lmcodec.compress(b"abcabc", 1, prior=other), prior=other) == b"abcabc"
    with pytest.raises(lmcodec.ModelNotFound, match="0000000000000000"):
        lmcodec.compress(b"abcabc", 6, prior=other)
    packed = lmcodec.compress(b"text " * 9, 6, prior=Prior(b"a text of a prior\n"))
    renamed = frame.Compact(frame.short_prior_id(other.id), packed[1] >> 1 & 3).pack() + packed[3:]
    with pytest.raises(lmcodec.ModelNotFound, match="0000000000000000"):
        lmcodec.decompress(renamed, prior=other)


def test_a_model_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    golden = Path(__file__).with_name("golden")
    prior = Prior(b"\n".join(events(4)) + b"\n", model=golden / "lm.lmm")
    assert prior.levels == list(range(1, 10))
    with pytest.raises(ValueError, match="uses no language model"):
        Prior(b"text", level=1, model="small")
    monkeypatch.setenv("LMCODEC_MODEL", str(golden / "lm.lmm"))
    packed = lmcodec.compress(MESSAGES[0], 5, prior=prior)
    assert lmcodec.decompress(packed, prior=Prior.parse(prior.pack())) == MESSAGES[0]
    monkeypatch.delenv("LMCODEC_MODEL")
    assert Prior(b"text").model != prior.model
    with pytest.raises(lmcodec.ModelNotFound):
        lmcodec.decompress(packed, prior=Prior.parse(prior.pack()))


def test_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    """FORMAT.md section 2.6 as another program decodes what the kernel wrote, the network's state and all."""
    golden = Path(__file__).with_name("golden")
    monkeypatch.setenv("LMCODEC_MODEL", str(golden / "lm.lmm"))
    text, message = b"\n".join(events(2)) + b"\n", events(1, seed=6)[0][:60]
    prior = Prior(text, model=golden / "lm.lmm")
    for level, coding in ((1, 0), (2, 1), (6, 2)):
        with prior.engine(coding) as engine:
            engine.reset(1 << prior.tables_log2)
            before = engine.encode(text)
        packed = lmcodec.compress(message, level, prior=prior)
        assert packed[1] >> 1 & 3 == coding
        files = [(golden / "lm.lmm").read_bytes()]
        assert format_reference.decode_compact(packed, prior.pack(), before, files) == message


def test_salvage(prior: Prior) -> None:
    from lmcodec.codec.salvage import Gap, salvage

    frames = [lmcodec.compress(message, 1, prior=prior) for message in MESSAGES[:4]]
    frames[2:2] = [lmcodec.compress(b"another frame", 1)]

    def salvaged(data: bytes) -> list[bytes | Gap]:
        return list(salvage(lambda at, n: data[at : at + n], len(data), prior=prior))

    expected = [*MESSAGES[:2], b"another frame", *MESSAGES[2:4]]
    assert salvaged(b"".join(frames)) == expected
    damaged = bytearray(frames[1])
    damaged[-1] ^= 1
    frames[1] = bytes(damaged)
    found = salvaged(b"".join(frames))
    assert found[:1] + found[2:] == expected[:1] + expected[2:]
    gap = found[1]
    assert isinstance(gap, Gap)
    assert (gap.offset, gap.nbytes, gap.original_nbytes) == (len(frames[0]), len(frames[1]), len(MESSAGES[1]))
    with pytest.raises(PriorNotFound):
        list(salvage(lambda at, n: frames[0][at : at + n], len(frames[0])))


# Training


def test_training_chooses_what_helps() -> None:
    """Few samples of a kind among many of another: what is like the samples kept aside gets in."""
    noise = [random.Random(i).randbytes(100).hex().encode() for i in range(100)]
    mixed = [sample for pair in zip(noise, events(100, seed=7), strict=True) for sample in pair]
    prior = Prior.train(mixed, size=4 << 10, level=1)
    assert len(prior.text) <= 4 << 10
    assert prior.card["samples"] == 200
    assert prior.card["held_out_coded_nbytes"] < prior.card["held_out_coded_without_nbytes"]
    assert prior.text.count(b'"event"') > 15  # of 4 KiB about 30 are possible
    assert Prior.train(mixed, size=4 << 10, level=1).id == prior.id  # no chance in it


def test_training_refuses_too_little() -> None:
    with pytest.raises(ValueError, match="10 samples or more, 9 are given"):
        Prior.train([b"", *events(9)])
    with pytest.raises(ValueError, match="size"):
        Prior.train(events(20), size=100)


def test_samples_that_are_long_are_taken_in_pieces() -> None:
    prior = Prior.train([b"\n".join(events(60, seed=i)) for i in range(12)], size=8 << 10, level=1)
    assert 6 << 10 < len(prior.text) <= 8 << 10


# The command line


def lmz(*arguments: str, status: int = 0) -> str:
    """What a command says, of which the first argument is the module."""
    run = subprocess.run(
        [sys.executable, "-I", "-m", f"lmcodec.cli.{arguments[0]}", *arguments[1:]],
        capture_output=True,
        encoding="utf-8",
    )
    assert run.returncode == status, run.stderr
    return run.stdout + run.stderr


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("samples.jsonl").write_bytes(b"\n".join(events(120)) + b"\n\n")
    Path("one.json").write_bytes(MESSAGES[0])
    group = "from lmcodec.cli.main import main; main()"

    def lmcodec_(*arguments: str, status: int = 0) -> str:
        run = subprocess.run(
            [sys.executable, "-I", "-c", group, *arguments], capture_output=True, encoding="utf-8"
        )
        assert run.returncode == status, run.stderr
        return run.stdout + run.stderr

    said = lmcodec_(
        "prior", "train", "samples.jsonl", "--json-lines", "-o", "a.lmprior", "--size", "4K", "--level", "1"
    )
    prior = Prior.load("a.lmprior")
    assert prior.id.hex() in said
    assert json.loads(lmcodec_("prior", "show", "a.lmprior", "--json"))["levels"] == [1, 2]
    assert "levels 1, 2" in lmcodec_("prior", "show", "a.lmprior")
    assert lmcodec_("prior", "show", "a.lmprior", "--text").encode() == prior.text
    lmz("lmz", "-1", "--verify", "--prior", "a.lmprior", "one.json")
    assert Path("one.json.lmz").read_bytes() == lmcodec.compress(MESSAGES[0], 1, prior=prior)
    assert f"prior-{prior.id.hex()[:3]}" in lmz("lmz", "-l", "one.json.lmz")
    assert (
        json.loads(lmz("lmz", "-l", "--json", "one.json.lmz"))[0]["frames"][0]["prior"] == prior.id.hex()[:3]
    )
    assert lmz("lmz", "-dc", "--prior", "a.lmprior", "one.json.lmz").encode() == MESSAGES[0]
    said = lmz("lmz", "-dc", "one.json.lmz", status=1)
    assert "needs the prior whose id begins with" in said
    assert said.count("\n") == 1
    for wrong in (
        ["-6", "--prior", "a.lmprior"],
        ["-1", "--prior", "missing"],
        ["-1", "--prior", "one.json"],
        ["-1", "--prior", "a.lmprior", "--prior", "a.lmprior"],
        ["-1", "--prior", "a.lmprior", "--model", "small"],
    ):
        said = lmz("lmz", "-c", *wrong, "one.json", status=1)
        assert said.count("\n") == 1, said
        assert "internal" not in said
    Path("few").write_bytes(b"a\nb\n")
    for wrong in (["few", "--lines"], ["few", "--json-lines"], ["missing"]):
        said = lmcodec_("prior", "train", *wrong, "-o", "b.lmprior", status=1)
        assert said.count("\n") == 1, said
        assert "internal" not in said
    assert not Path("b.lmprior").exists()


def test_checks_are_crc32(prior: Prior) -> None:
    """FORMAT.md section 2.6, byte by byte."""
    message = MESSAGES[0]
    packed = lmcodec.compress(message, 1, prior=prior)
    payload = prior.encode(message, 0)
    short = int(prior.id.hex()[:3], 16)
    head = bytes([0xC1, short >> 8 << 4, short & 255])
    sizes = frame.pack_varint(len(message) * (len(message) + 1) // 2 + len(payload))
    check = zlib.crc32(message + head + prior.id + sizes + payload)
    assert packed == head + sizes + check.to_bytes(4, "little") + payload
