"""Golden frames: what a version has written decodes forever, and is written again bit for bit.

golden/make.py makes the frames and, here, their originals.
"""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

import lmcodec

GOLDEN = Path(__file__).with_name("golden")
MAKE = runpy.run_path(str(GOLDEN / "make.py"))
CASES = MAKE["CASES"]


def golden(name: str) -> bytes:
    path = GOLDEN / f"{name}.lmz"
    assert path.is_file(), f"{path} is missing: python tests/golden/make.py writes it"
    return path.read_bytes()


@pytest.mark.parametrize("name", CASES)
def test_decodes(name: str, tmp_path: Path) -> None:
    model, base = CASES[name].options.get("model"), None
    if CASES[name].base is not None:
        base = tmp_path / "base"
        base.write_bytes(CASES[name].base())
    assert lmcodec.decompress(golden(name), model=model, base=base) == CASES[name].original()


@pytest.mark.parametrize("name", CASES)
def test_is_written_again(name: str) -> None:
    assert MAKE["frame_of"](CASES[name]) == golden(name)


def test_no_frame_without_a_case() -> None:
    assert {path.name for path in GOLDEN.iterdir()} - {"__pycache__"} == {
        "make.py",
        "integer-model.json",
        "model.lmm",
        "hashes.py",
        "hashes.json",
        "lm.lmm",
        "network.lmm",
        *(f"{name}.lmz" for name in CASES),
    }


def test_cases_show_what_they_are_for() -> None:
    """Small, and of every method, profile, shape and flag there is."""
    from lmcodec.frame import Flag, Method

    seen: set[object] = set()
    for name, case in CASES.items():
        assert len(case.original()) <= (2400 if name != "tensors-rows" else 40_000)
        info = lmcodec.frame_info(MAKE["frame_of"](case))
        assert info.blocks is not None
        seen.add(Flag.INDEX in info.flags)
        for before, block in zip([None, *info.blocks], info.blocks, strict=False):
            seen |= {block.method, (block.profile, block.streams, block.groups, block.continues)}
            seen.add((before and before.method, block.method))
    assert seen >= {False, True, *Method} | {(Method.STORED, Method.CM)}
    assert seen >= {(0, 1, 1, False), (0, 3, 2, False), (0, 3, 2, True)}  # the network alone
    for profile in (1, 2, 3):
        assert seen >= {
            (profile, *shape) for shape in [(1, 1, False), (1, 1, True), (2, 1, False), (4, 2, True)]
        }


def test_golden_frames_are_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make = MAKE["main"]
    make(["--out", str(tmp_path)])
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(written) == {f"{name}.lmz" for name in CASES}
    make(["--out", str(tmp_path)])
    assert capsys.readouterr().out.endswith(" 0 changed\n")
    old, gone = tmp_path / "text-fast.lmz", tmp_path / "empty.lmz"
    old.write_bytes(b"old")
    gone.unlink()
    with pytest.raises(SystemExit, match=r"text-fast\.lmz: would change"):
        make(["--out", str(tmp_path)])
    assert old.read_bytes() == b"old"
    assert not gone.exists()
    make(["--out", str(tmp_path), "--force"])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == written
