"""What of damaged files is sound is given back, and what is missing is named."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

import lmcodec
from lmcodec.codec.salvage import Gap, merged, salvage

BLOCK_NBYTES = 1024
RNG = random.Random(5)
TEXT = " ".join(
    f"{RNG.choice(['the', 'of', 'and', 'to', 'in', 'is'])}{RNG.randrange(99)}" for _ in range(4000)
).encode()


def salvaged(data: bytes, **options: object) -> tuple[list[bytes], list[Gap]]:
    sound: list[bytes] = []
    gaps: list[Gap] = []
    for item in salvage(lambda at, n: data[at : at + n], len(data), **options):  # type: ignore[arg-type]
        if isinstance(item, Gap):
            gaps.append(item)
        else:
            sound.append(item)
    return sound, merged(gaps)


def packed(data: bytes = TEXT[:8000], **options: object) -> bytes:
    return lmcodec.compress(data, block_size=BLOCK_NBYTES, **{"level": 1, **options})  # type: ignore[arg-type]


def flipped(data: bytes, at: int, mask: int = 1) -> bytes:
    return data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :]


def block_offsets(data: bytes) -> list[int]:
    info = lmcodec.frame_info(data)
    offsets = [info.header_nbytes]
    for block in info.blocks or ():
        offsets.append(offsets[-1] + block.nbytes)
    return offsets


def test_what_is_sound_is_all_there() -> None:
    for data in (packed(), packed(b""), packed() + packed(TEXT[:3000]), packed() + bytes(700)):
        sound, gaps = salvaged(data)
        assert (b"".join(sound), gaps) == (lmcodec.decompress(data), [])


def test_damage_stays_in_its_block() -> None:
    """Wherever a bit is flipped: at most one block is missing, and something is said."""
    data, text = packed(), TEXT[:8000]
    rng = random.Random(3)
    offsets = block_offsets(data)
    places = [*range(offsets[0]), *range(offsets[2], offsets[2] + 12), *range(offsets[-1], len(data))]
    for at in [*places, *(rng.randrange(len(data)) for _ in range(60))]:
        sound, gaps = salvaged(flipped(data, at, 1 << rng.randrange(8)))
        assert gaps, at
        lost = [gap.original_nbytes for gap in gaps]
        assert len(b"".join(sound)) >= len(text) - BLOCK_NBYTES, at
        rest = text
        for gap in gaps:  # the output is the text without what is missing, where the gap says
            assert gap.original_nbytes is not None or gap.offset == 0, at
            rest = rest[: gap.original_offset] + rest[gap.original_offset + (gap.original_nbytes or 0) :]
        assert b"".join(sound) == rest, (at, lost)


def test_every_cut() -> None:
    data = packed(TEXT[:3000])
    for end in range(0, len(data), 37):
        sound, gaps = salvaged(data[:end])
        assert TEXT.startswith(b"".join(sound))
        assert gaps or not end
        complete = sum(offset <= end for offset in block_offsets(data)[1:])
        assert len(b"".join(sound)) == min(complete * BLOCK_NBYTES, 3000)


def test_a_damaged_header_without_an_index() -> None:
    """The next block is looked for byte by byte."""
    data = packed()
    offsets = block_offsets(data)
    bad = flipped(flipped(data, offsets[3] + 3, 0x55), len(data) - 20)
    sound, gaps = salvaged(bad)
    assert len(b"".join(sound)) >= 8000 - BLOCK_NBYTES
    assert len(gaps) == 2
    sound, _ = salvaged(flipped(bad, 0))  # and the frame header, too
    assert len(b"".join(sound)) >= 8000 - BLOCK_NBYTES


def test_blocks_that_continue_a_damaged_one_are_lost() -> None:
    data = packed(solid=True)
    offsets = block_offsets(data)
    sound, gaps = salvaged(flipped(data, offsets[3] + 40))
    assert b"".join(sound) == TEXT[: 3 * BLOCK_NBYTES]
    assert [gap.original_nbytes for gap in gaps] == [8000 - 3 * BLOCK_NBYTES]


def test_a_damaged_frame_does_not_hide_the_next() -> None:
    first, second = packed(TEXT[:900]), packed(TEXT[900:2000])
    assert b"".join(salvaged(first[:50] + second)[0]) == TEXT[900:2000]
    assert b"".join(salvaged(b"something else" + second)[0]) == TEXT[900:2000]
    assert b"".join(salvaged(first + b"something else" + second)[0]) == TEXT[:2000]


def test_blocks_with_a_language_model_without_their_frame_header() -> None:
    data = lmcodec.compress(TEXT[:3000], level=3, block_size=1024, method="lm+cm")
    sound, gaps = salvaged(flipped(data, 5))
    assert b"".join(sound) == TEXT[:3000]
    assert [gap.original_nbytes for gap in gaps] == [0]


def test_limits_are_not_damage() -> None:
    with pytest.raises(lmcodec.LimitExceeded):
        salvaged(packed(), max_output=2000)
    with pytest.raises(lmcodec.LimitExceeded):
        salvaged(packed(), memory_limit=1000)


def test_noise_is_refused() -> None:
    noise = random.Random(1).randbytes(20_000)
    sound, gaps = salvaged(noise)
    assert sound == []
    assert [gap.original_nbytes for gap in gaps] == [None]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lmcodec.cli.lmz", *arguments],
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        stdin=subprocess.DEVNULL,
    )


def test_the_command(tmp_path: Path) -> None:
    data = packed()
    offsets = block_offsets(data)
    (tmp_path / "a.lmz").write_bytes(flipped(data, offsets[2] + 40))
    (tmp_path / "good.lmz").write_bytes(data)
    (tmp_path / "noise.lmz").write_bytes(random.Random(1).randbytes(5000))
    assert run(tmp_path, "-d", "a.lmz").returncode == 1
    done = run(tmp_path, "-d", "--salvage", "a.lmz")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    span = f"bytes {offsets[2]:,} to {offsets[3]:,}: block 3: "
    assert f"lmz: a.lmz: {span}" in done.stderr
    assert "1,024 bytes are missing after byte 2,048 of the output" in done.stderr
    assert (tmp_path / "a").read_bytes() == TEXT[:2048] + TEXT[3072:8000]
    assert (tmp_path / "a.lmz").exists()
    assert run(tmp_path, "-t", "--salvage", "a.lmz").returncode == 1
    assert (run(tmp_path, "-d", "--salvage", "good.lmz").returncode, (tmp_path / "good").stat().st_size) == (
        0,
        8000,
    )
    nothing = run(tmp_path, "-d", "--salvage", "noise.lmz")
    assert nothing.returncode == 1
    assert "nothing of it is sound" in nothing.stderr
    assert not (tmp_path / "noise").exists()
    assert sorted(os.listdir(tmp_path)) == ["a", "a.lmz", "good", "good.lmz", "noise.lmz"]
    for arguments in (("--rm", "-d"), ("-z",), ("-l",), ("-d", "--max-ratio", "3")):
        refused = run(tmp_path, "--salvage", *arguments, "a.lmz")
        assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)
        assert "--salvage" in refused.stderr


def test_a_damaged_header_of_a_block_with_a_model_is_a_gap() -> None:
    """It has no check of its own: a profile that the model lacks is damage like any other."""
    data = packed(TEXT[:4096], level=3, method="lm+cm")
    offsets = block_offsets(data)
    for mask in (2, 4, 8, 16):
        sound, gaps = salvaged(flipped(data, offsets[1] + 1, mask))
        assert len(gaps) == 1, mask
        assert sound[0] == TEXT[:1024]
        assert sound[-1] == TEXT[3072:4096]
