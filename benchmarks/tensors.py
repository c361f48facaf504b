"""Files of tensors: size and speed, both ways, beside zipnn, zstd, xz and brotli, in one interleaved run.

    python benchmarks/tensors.py FILE... [--most MIB] [--rounds N] [--slow-rounds N] [--out RESULT.json]

A FILE is safetensors or GGUF. Of each the tensors are taken, in order, until they have so many MiB;
large ones are cut by rows. A safetensors file of float32 is measured as it is and rounded to bfloat16
and to float16 (nearest, ties to even). Every program gets two threads where it can have them; zipnn,
which is a library, gets the bytes of the same file and the type of its numbers. Seconds are those of the
clock and of the processor: on a machine that is shared only the latter mean anything, and twice their
rate is what two cores of one's own could do at best. Everything is decoded and compared.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import lmcodec
from lmcodec.measure import machine
from lmcodec.tensor_files.layout import Tensor, element_of
from lmcodec.tensor_files.recognise import parse

Codec = tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]


def safetensors_file(tensors: list[tuple[str, str, tuple[int, ...], bytes]]) -> bytes:
    header: dict[str, Any] = {}
    at = 0
    for name, dtype, shape, data in tensors:
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(data for *_, data in tensors)


def gguf_file(tensors: list[tuple[Tensor, bytes]]) -> bytes:
    """A file of these tensors, without metadata."""
    from lmcodec.tensor_files.gguf import TYPES

    numbers = {name: number for number, (name, _, _) in TYPES.items()}
    head, body = b"GGUF" + (3).to_bytes(4, "little") + len(tensors).to_bytes(8, "little") + bytes(8), b""
    for tensor, piece in tensors:
        n_row = len(piece) // tensor.row_nbytes if tensor.row_nbytes else 0
        shape = (n_row, *tensor.shape[1:]) if n_row else tensor.shape
        name = tensor.name.encode()
        head += len(name).to_bytes(8, "little") + name + len(shape).to_bytes(4, "little")
        head += b"".join(n.to_bytes(8, "little") for n in shape[::-1])
        head += numbers[tensor.dtype].to_bytes(4, "little") + len(body).to_bytes(8, "little")
        body += piece + bytes(-len(piece) % 32)
    return head + bytes(-len(head) % 32) + body


def taken(path: Path, most_nbytes: int) -> tuple[str, list[tuple[Tensor, bytes]]]:
    """The first tensors of a file, the last one cut by rows."""
    with path.open("rb") as file:

        def read_at(at: int, nbytes: int) -> bytes:
            file.seek(at)
            return file.read(nbytes)

        name, tensors = parse(read_at, path.stat().st_size)
        # Large ones first of all would be the vocabulary's table alone: it gets half of the room.
        out: list[tuple[Tensor, bytes]] = []
        left = most_nbytes
        for tensor in tensors:
            nbytes = tensor.nbytes
            room = min(left, most_nbytes // 2)
            if nbytes > room:
                nbytes = room // tensor.row_nbytes * tensor.row_nbytes if tensor.row_nbytes else 0
            if nbytes and tensor.layout is not None:
                out.append((tensor, read_at(tensor.offset, nbytes)))
                left -= nbytes
    return name, out


def rounded(data: bytes, dtype: str) -> bytes:
    values = np.frombuffer(data, "<f4")
    if dtype == "F16":
        return values.astype("<f2").tobytes()
    bits = values.view("<u4").astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()


def inputs(path: Path, most_nbytes: int) -> dict[str, tuple[bytes, str]]:
    """Files to measure, by name, and the type of nearly all of their numbers."""
    kind, tensors = taken(path, most_nbytes)
    label = (
        path.stem
        if path.stem != "model"
        else path.parent.name
        if path.parent.name != "model"
        else path.parents[1].name
    )
    if kind == "GGUF":
        return {f"{label} GGUF": (gguf_file(tensors), "")}
    found: dict[str, tuple[bytes, str]] = {}
    floats = [t.dtype for t, data in tensors if len(data) > 4096]
    first = max(set(floats), key=floats.count)
    for dtype in dict.fromkeys([first, *(["BF16", "F16"] if first == "F32" else [])]):
        parts = []
        for tensor, data in tensors:
            width = element_of(tensor.dtype)
            assert width is not None
            own = dtype if tensor.dtype == first else tensor.dtype
            n_row = len(data) // tensor.row_nbytes if tensor.row_nbytes else 0
            shape = (n_row, *tensor.shape[1:]) if n_row else tensor.shape
            parts.append((tensor.name, own, shape, rounded(data, own) if own != tensor.dtype else data))
        found[f"{label} {dtype}"] = (safetensors_file(parts), dtype)
    return found


def by_command(pack: list[str], unpack: list[str]) -> Codec:
    def run(command: list[str], data: bytes) -> bytes:
        return subprocess.run(command, input=data, check=True, capture_output=True).stdout

    return lambda data: run(pack, data), lambda packed: run(unpack, packed)


def by_lmcodec(level: int) -> Codec:
    return (
        lambda data: lmcodec.compress(data, level, threads=2),
        lambda packed: lmcodec.decompress(packed, threads=2),
    )


def by_zipnn(dtype: str) -> Codec | None:
    names = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
    if dtype not in names:
        return None
    import zipnn  # type: ignore[import-not-found, unused-ignore]

    def make() -> Any:
        return zipnn.ZipNN(bytearray_dtype=names[dtype], input_format="byte", threads=2)

    # It writes into what it is given.
    return lambda data: bytes(make().compress(bytearray(data))), lambda packed: bytes(
        make().decompress(packed)
    )


def by_brotli() -> Codec:
    import brotli  # type: ignore[import-not-found, unused-ignore]

    return lambda data: brotli.compress(data, quality=11, lgwin=24), brotli.decompress


@dataclass
class Timed:
    seconds: float = 1e9
    cpu_seconds: float = 1e9

    def take(self, work: Callable[[], bytes]) -> bytes:
        def cpu() -> float:
            return sum(
                sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
            )

        begin, begin_cpu = time.perf_counter(), cpu()
        result = work()
        self.seconds = min(self.seconds, time.perf_counter() - begin)
        self.cpu_seconds = min(self.cpu_seconds, cpu() - begin_cpu)
        return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--most", type=int, default=24, help="MiB of each file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slow-rounds", type=int, default=1, help="of zstd, xz and brotli")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results: dict[str, Any] = {"machine": machine.describe(), "files": {}}
    for path in options.files:
        for name, (data, dtype) in inputs(path, options.most << 20).items():
            results["files"][name] = measure(name, data, dtype, options.rounds, options.slow_rounds)
            if options.out:
                options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def measure(name: str, data: bytes, dtype: str, rounds: int, slow_rounds: int) -> dict[str, Any]:
    codecs: dict[str, Codec | None] = {
        "lmz -1": by_lmcodec(1),
        "lmz -2": by_lmcodec(2),
        "lmz -6": by_lmcodec(6),
        "zipnn": by_zipnn(dtype),
        "zstd -3": by_command(["zstd", "-3", "-T2", "-c", "-q"], ["zstd", "-d", "-c", "-q"]),
        "zstd -19": by_command(["zstd", "-19", "-T2", "-c", "-q"], ["zstd", "-d", "-c", "-q"]),
        "xz -9": by_command(["xz", "-9", "-T2", "-c"], ["xz", "-d", "-T2", "-c"]),
        "brotli 11": by_brotli(),
    }
    slow = {"zstd -19", "xz -9", "brotli 11"}
    packed, pack, unpack = {}, {n: Timed() for n in codecs}, {n: Timed() for n in codecs}
    for round_ in range(rounds):
        for codec, both in codecs.items():
            if both is None or (codec in slow and round_ >= slow_rounds):
                continue
            compress, decompress = both
            packed[codec] = pack[codec].take(lambda compress=compress: compress(data))  # type: ignore[misc]
            restored = unpack[codec].take(lambda d=decompress, p=packed[codec]: d(p))  # type: ignore[misc]
            assert restored == data, f"{codec} does not restore {name}"
    rows: dict[str, Any] = {"nbytes": len(data)}
    print(f"\n{name}: {len(data):,} bytes; MB/s in and out, by the clock and (MB a processor second)")
    for codec, result in packed.items():
        rates = [
            len(data) / 1e6 / seconds
            for timed in (pack[codec], unpack[codec])
            for seconds in (timed.seconds, max(timed.cpu_seconds, 1e-9))
        ]
        rows[codec] = {
            "nbytes": len(result),
            "ratio": round(len(result) / len(data), 4),
            "in": round(rates[0], 1),
            "in_cpu": round(rates[1], 1),
            "out": round(rates[2], 1),
            "out_cpu": round(rates[3], 1),
        }
        print(
            f"  {codec:10} {len(result):12,} {len(result) / len(data):.4f}"
            f"  in {rates[0]:7.1f} ({rates[1]:7.1f})  out {rates[2]:7.1f} ({rates[3]:7.1f})",
            flush=True,
        )
    return rows


if __name__ == "__main__":
    if os.environ.get("LMCODEC_ISA"):
        sys.exit("unset LMCODEC_ISA: it is of models, and nothing here depends on it")
    main()
