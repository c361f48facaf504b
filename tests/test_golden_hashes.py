"""Golden hashes: decisions, payloads and frames under every instruction set, with one thread and with two.

golden/hashes.py computes them, says which may change and writes golden/hashes.json. What the network alone
computes is held by golden/integer-model.json, for every executor.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lmcodec
from lmcodec import _kernel
from lmcodec.frame import Method
from lmcodec.lm import store

PATH = Path(__file__).with_name("golden") / "hashes.py"
MAKE = runpy.run_path(str(PATH))
EXPECTED: dict[str, dict[str, str]] = json.loads((PATH.parent / "hashes.json").read_text(encoding="utf-8"))
ISAS = _kernel.network_isas()


@pytest.mark.parametrize(
    "isa", [pytest.param(isa, marks=pytest.mark.slow if isa in ISAS[1:-1] else []) for isa in ISAS]
)
def test_every_instruction_set(isa: str) -> None:
    """All of a process's arithmetic is that set's: encoding and decoding of each block and frame."""
    environment = {**os.environ, "LMCODEC_ISA": isa}
    for name in (store.MODEL_VARIABLE, "LMCODEC_CODER", "LMCODEC_LEVEL", "LMCODEC_THREADS"):
        environment.pop(name, None)
    command: list[str | Path] = [sys.executable, "-I", "-W", "error", PATH, "--compute"]
    run = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["used"]["network"] == isa
    mixers = _kernel.mixing_isas()
    assert found["used"]["mixer"] == next((name for name in mixers if isa.startswith(name)), mixers[0])
    assert MAKE["differences"](found["hashes"], EXPECTED) == []


def test_what_the_hashes_are_of() -> None:
    """Frames of every method, hashes of every profile; a shipped model has some, and no other."""
    methods = set()
    for level in (3, 6):
        for text in MAKE["texts"]().values():
            (block,) = lmcodec.frame_info(lmcodec.compress(text, level, model=MAKE["MODEL"])).blocks or ()
            methods.add((level, block.method))
    assert methods == {
        (level, method) for level in (3, 6) for method in (Method.STORED, Method.CM, Method.LM_CM)
    }
    kinds = [
        f"{lm}profile {number}," for lm, numbers in (("", (1, 2, 3)), ("lm ", (1, 2))) for number in numbers
    ]
    for part, starts in (("fixed", kinds), ("chosen", ["level 1,", "level 2,"])):
        for start in starts:
            assert sum(name.startswith(start) for name in EXPECTED[part]) >= 14, start
    assert {name.split(",")[0] for name in EXPECTED["shipped"]} == {s.name for s in store.SHIPPED.values()}
    values = [value for part in EXPECTED.values() for value in part.values()]
    assert len(set(values)) > 0.9 * len(values)  # (stored frames do not depend on the level)


def test_fixed_hashes_are_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: dict[str, dict[str, str]] = {"fixed": {"a": "1"}, "chosen": {"b": "2"}, "shipped": {"c": "3"}}
    path, main = tmp_path / "hashes.json", MAKE["main"]
    names: dict[str, Any] = main.__globals__
    monkeypatch.setitem(names, "HASHES", path)
    monkeypatch.setitem(names, "compute", lambda: computed)
    main(["--write"])
    assert json.loads(path.read_text(encoding="utf-8")) == computed
    main([])
    computed["chosen"]["b"], computed["shipped"] = "4", {"d": "5"}
    with pytest.raises(SystemExit, match=r"^chosen: b\nshipped: c\nshipped: d$"):
        main([])
    main(["--write"])
    main([])
    for fixed in ({"a": "6"}, {"a": "1", "e": "7"}, {}):
        computed["fixed"] = fixed
        before = path.read_text(encoding="utf-8")
        with pytest.raises(SystemExit, match="only with a format version"):
            main(["--write"])
        assert path.read_text(encoding="utf-8") == before
    main(["--write", "--force"])
    assert json.loads(path.read_text(encoding="utf-8")) == computed
