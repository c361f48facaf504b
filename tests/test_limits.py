"""Hostile files buy no memory: every size is checked against the limits before anything is made of it.

Each case makes a file. A process of its own reads it, and says what was raised and by how much its largest
resident size grew meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from test_weights import rebuild

from lmcodec import frame, profile
from lmcodec.frame import Block, FrameHeader, Method, pack_varint
from lmcodec.lm import vocab
from lmcodec.lm.container import MAGIC as MODEL_MAGIC

if not Path("/proc/self/status").exists():
    pytest.skip("needs /proc to measure memory", allow_module_level=True)

# The modules are loaded before the measuring begins. On Linux getrusage would begin with what the parent had.
_CHILD = """
import sys
{imports}
def peak():
    with open("/proc/self/status", encoding="ascii") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
path = sys.argv[1]
before = peak()
try:
    {statement}
    raised = "nothing"
except Exception as error:
    raised = f"{{type(error).__name__}}: {{error}}"
print(peak() - before, raised)
"""


class Case(NamedTuple):
    """Attributes:
    make: writes the file or folder.
    imports, statement: read what `path` names.
    raises: what is raised, a regular expression.
    most_nbytes: by which the process may grow.
    """

    make: Callable[[Path], object]
    imports: str
    statement: str
    raises: str
    most_nbytes: int


def spec(lm: int, selectors: list[str], n_context: int = 64, **more: Any) -> dict[str, Any]:
    contexts = [[name] for name in (profile.FEATURES[1:50] * 2)[:n_context]]
    return {
        "contexts": contexts,
        "selectors": selectors,
        "maps": [],
        "matches": [4],
        "numbers": {"lm": lm},
        **more,
    }


def xz(body: bytes, dictionary: int = 8) -> bytes:
    """An xz stream that asks for a dictionary of 2^(11 + `dictionary` / 2) bytes."""
    packed = bytearray(lzma.compress(body, format=lzma.FORMAT_XZ, preset=0))
    if not body:
        return bytes(packed)
    header = packed[
        12:24
    ]  # of the block: its size, flags, the filter's id, the size of its properties, the dictionary
    assert header[:4] == b"\2\0\x21\1"
    header[4] = dictionary
    packed[12:24] = header[:8] + struct.pack("<I", zlib.crc32(header[:8]))
    return bytes(packed)


def packed_profile(text: bytes, body: bytes = b"", dictionary: int = 8) -> bytes:
    """A profile's file, without asking whether it is one."""
    packed = xz(body, dictionary)
    return b"LMZP\x01" + struct.pack("<II", len(text), len(packed)) + text + packed


def small_profile() -> bytes:
    """A true one that starts with 2 MB of learned values, all of them the same."""
    chosen = spec(1, ["order0"] * 12, 60)
    kernel = profile.build(chosen).kernel
    n_map = kernel.weights_at
    body = bytes([0, 128] * n_map) + bytes(n_map) + bytes(2 * (kernel.n_learned - n_map))
    return packed_profile(json.dumps(chosen).encode(), body)


def model(mixer: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(rebuild(replaced={"mixer": mixer}))


def profiles(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def index(n_block: int, block_nbytes: int) -> Callable[[Path], object]:
    """A file of one frame with an index of `n_block` blocks of one original byte, which are not there."""

    def make(path: Path) -> None:
        header = FrameHeader(has_index=True).pack()
        entry = pack_varint(block_nbytes) + pack_varint(1)
        with open(path, "wb") as file:
            file.write(header)
            file.seek(n_block * block_nbytes, os.SEEK_CUR)
            file.write(frame.pack_index(len(header), n_block, entry * n_block))

    return make


def frame_of(block: Block, model_id: int | None = None) -> Callable[[Path], object]:
    data = FrameHeader(model_id=model_id).pack() + block.pack(b"", bytes(block.payload_nbytes))
    return lambda path: path.write_bytes(data)


def sparse(head: bytes, nbytes: int) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        path.write_bytes(head)
        os.truncate(path, nbytes)

    return make


def overlapping_tensors(path: Path) -> None:
    """A checkpoint of 4 MiB whose hundred tensors are the same bytes."""
    path.mkdir()
    piece = bytes(4 << 20)
    (path / "piece-000").write_bytes(piece)
    tensor = {"dtype": "uint8", "shape": [len(piece)], "position": 0}
    content = {
        "document": {},
        "tensors": {f"t{i}": tensor for i in range(100)},
        "pieces": [{"nbytes": len(piece), "sha256": hashlib.sha256(piece).hexdigest()}],
    }
    seal = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    manifest = {"format": "lmcodec-checkpoint-1", "sha256": seal, "content": content}
    (path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def large_manifest(path: Path) -> None:
    path.mkdir()
    sparse(b"[", 1 << 28)(path / "manifest.json")


def shard(body: bytes, dictionary: int = 12) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(xz(body, dictionary))


MIB = 1 << 20
_PROFILES = ("from lmcodec import profile", "profile.parse_all(open(path, 'rb').read())")
_MODEL = (
    "import lmcodec.engine, lmcodec.lm.recurrent.native, pathlib\nfrom lmcodec.lm.store import Source, load",
    "load(Source(pathlib.Path(path)))",
)
_SHARD = (
    "from pathlib import Path\nfrom lmcodec.lm.vocab import Vocabulary\nfrom lmcodec.train import shards\n"
    "vocabulary = Vocabulary.load()",
    "shards.parse_shard(Path(path), vocabulary)",
)
_IMPORT = "import lmcodec, lmcodec.engine, lmcodec.lm.store, lmcodec.lm.recurrent.file\nlmcodec.open"


def _seek(limits: str) -> tuple[str, str]:
    return _IMPORT, f"f = lmcodec.open(path, {limits}); f.seek(1000); f.read(1)"


LARGE = ["hash2", "hash3", "hash_word", "order1"] * 3
CASES = {
    "a model file with a profile that takes none": Case(
        model(packed_profile(json.dumps(spec(0, LARGE)).encode())), *_MODEL, "Corrupt", 32 * MIB
    ),
    "a profile that takes no model": Case(
        profiles(packed_profile(json.dumps(spec(0, LARGE)).encode())),
        *_PROFILES,
        "Corrupt: .*for blocks without a language model",
        8 * MIB,
    ),
    "a profile of too many weights": Case(
        profiles(packed_profile(json.dumps(spec(1, LARGE)).encode())),
        *_PROFILES,
        "Corrupt: .*too many weights",
        8 * MIB,
    ),
    "sixty profiles": Case(
        profiles(small_profile() * 60), *_PROFILES, "Corrupt: .*(too many weights|more than 31)", 40 * MIB
    ),
    "a specification of millions of lists": Case(
        profiles(packed_profile(b"[" + b"[]," * (5 * MIB) + b"[]]")),
        *_PROFILES,
        "Corrupt: .*a specification of 15728644 bytes",
        40 * MIB,  # those that were read
    ),
    "learned values in a dictionary of 1 GiB": Case(
        profiles(packed_profile(json.dumps(spec(1, ["zero"], 1)).encode(), bytes(100), 38)),
        *_PROFILES,
        "Corrupt: .*Memory usage limit",
        8 * MIB,
    ),
    "a model file larger than it says": Case(
        sparse(struct.pack("<8sIIQ", MODEL_MAGIC, 1, 100, 1000), 250 * MIB),
        *_MODEL,
        "Corrupt: .* bytes after the end",
        16 * MIB,
    ),
    "a vocabulary of a gigabyte": Case(
        sparse(vocab.MAGIC + struct.pack("<I", 256) + b"\1" * 256, 1 << 30),
        "from lmcodec.lm.vocab import Vocabulary",
        "Vocabulary.load(path)",
        "LimitExceeded",
        8 * MIB,
    ),
    "an index of more blocks than fit": Case(index(4 * MIB, 1), *_seek(""), "Corrupt", 24 * MIB),
    "an index under a limit of memory": Case(
        index(MIB, 8), *_seek(f"memory_limit={8 * MIB}"), "LimitExceeded", 8 * MIB
    ),
    "an index under a limit of output": Case(index(MIB, 8), *_seek("max_output=1000"), "Corrupt", 8 * MIB),
    "an index of a million blocks": Case(index(MIB, 8), *_seek(""), "Corrupt", 48 * MIB),
    "a block under a limit of memory": Case(
        frame_of(Block(Method.CM, 1 << 24, 10, 2, 1, 1, last=True, enlarge=3)),
        _IMPORT,
        f"lmcodec.decompress(open(path, 'rb').read(), memory_limit={16 * MIB})",
        "LimitExceeded",
        16 * MIB,
    ),
    "a model under a limit of memory": Case(
        frame_of(Block(Method.LM, 1 << 16, 10, 0, 1, 1, last=True), 5),
        _IMPORT,
        f"lmcodec.decompress(open(path, 'rb').read(), memory_limit={MIB})",
        "LimitExceeded",
        # The file is read, its weights are not decoded.
        32 * MIB,
    ),
    "content of 2^60 bytes": Case(
        lambda path: path.write_bytes(FrameHeader(1 << 60).pack()),
        _IMPORT,
        "lmcodec.decompress(open(path, 'rb').read(), max_output=1 << 20)",
        "LimitExceeded",
        MIB,
    ),
    "a shard of a gigabyte": Case(sparse(b"\xfd7zXZ\0", 1 << 30), *_SHARD, "LimitExceeded", 64 * MIB),
    "a shard's header of millions of lists": Case(
        shard(b"LMSHARD1" + struct.pack("<I", 12 * MIB) + b"[" + b"[]," * (4 * MIB - 1) + b"]]"),
        *_SHARD,
        "Corrupt",
        64 * MIB,
    ),
    "a shard in a dictionary of 1 GiB": Case(
        shard(bytes(100), 38), *_SHARD, "Corrupt: .*Memory usage limit", 8 * MIB
    ),
    "a checkpoint's tensors": Case(
        overlapping_tensors,
        "from pathlib import Path\nfrom lmcodec.train import checkpoint",
        "checkpoint.load(Path(path))",
        "Corrupt",
        32 * MIB,
    ),
    "a checkpoint's manifest": Case(
        large_manifest,
        "from pathlib import Path\nfrom lmcodec.train import checkpoint",
        "checkpoint.load(Path(path))",
        "Corrupt",
        32 * MIB,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_hostile_files_buy_no_memory(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    if "lmcodec.train" in case.imports and "checkpoint" in case.imports:
        pytest.importorskip("torch")
    path = tmp_path / "hostile"
    case.make(path)
    code = _CHILD.format(imports=case.imports, statement=case.statement)
    run = subprocess.run(
        [sys.executable, "-I", "-c", code, path], capture_output=True, encoding="utf-8", timeout=120
    )
    assert run.returncode == 0, run.stderr
    grown, raised = run.stdout.split(maxsplit=1)
    assert re.match(case.raises, raised), raised
    assert int(grown) < case.most_nbytes, raised


def test_as_many_profiles_as_a_block_can_name() -> None:
    one = packed_profile(json.dumps(tiny := spec(1, ["zero"], 1)).encode(), learned(tiny))
    assert len(profile.parse_all(one * profile.MAX_PROFILES)) == profile.MAX_PROFILES
    with pytest.raises(profile.Corrupt, match="more than 31 profiles"):
        profile.parse_all(one * (profile.MAX_PROFILES + 1))


def learned(chosen: dict[str, Any]) -> bytes:
    kernel = profile.build(chosen).kernel
    n_map = kernel.weights_at
    return bytes([0, 128] * n_map) + bytes(n_map) + bytes(2 * (kernel.n_learned - n_map))


def test_what_an_index_must_hold() -> None:
    """The checks before the index is read refuse none that an encoder writes, and every other."""
    good = frame.pack_index(6, 2, bytes([60, 100, 5, 0]))
    assert list(frame.parse_entries(good)) == [(60, 100), (5, 0)]
    for bad in (
        frame.pack_index(6, 3, bytes([60, 100, 5, 0])),
        frame.pack_index(6, 1, bytes([60, 100, 5, 0])),
        frame.pack_index(6, 0, b""),
        frame.pack_index(6, 1 << 40, bytes([60, 100])),
    ):
        with pytest.raises(frame.Corrupt):
            list(frame.parse_entries(bad))
        assert zlib.crc32(bad[:-12]) == int.from_bytes(bad[-12:-8], "little")
