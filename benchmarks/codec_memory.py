"""Memory that decoding takes, and how long the command line takes to start.

    python benchmarks/codec_memory.py [--mb 32] [--gb N] [--levels 1 2] [--threads N] [--rounds 9]

Peak memory of `lmz -dc` on a frame of --mb megabytes of text (in independent blocks, and in a chain), and on
a pipe of --gb gigabytes (frames of 4 MiB one after another; one gigabyte takes the better part of an hour, so
it is off by default). Start-up: median time of `lmz -V`, and of 100 bytes both ways.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from codec_speed import text_of_dev

import lmcodec

LMZ = [sys.executable, "-I", "-m", "lmcodec.cli.lmz"]
# The peak is asked of the child itself: what wait4 reports counts the parent it was forked from as well.
MEASURED = """
import runpy, sys
try:
    runpy.run_module("lmcodec.cli.lmz", run_name="__main__", alter_sys=True)
finally:
    with open("/proc/self/status") as file:
        peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    sys.stderr.write(f"{peak}\\n")
"""


def peak_of_decoding(pieces: Iterable[bytes], threads: int | None) -> tuple[int, int]:
    """Bytes of memory at the peak, and bytes decoded, of a child that reads the pieces through a pipe."""
    arguments = [sys.executable, "-I", "-c", MEASURED, "-dc", *(["-T", str(threads)] if threads else [])]
    pipe = subprocess.PIPE
    child = subprocess.Popen(arguments, stdin=pipe, stdout=pipe, stderr=pipe)
    assert child.stdin
    assert child.stdout
    assert child.stderr
    stdin = child.stdin

    def feed() -> None:
        for piece in pieces:
            stdin.write(piece)
        stdin.close()

    feeder = threading.Thread(target=feed, daemon=True)
    feeder.start()
    nbytes = 0
    while piece := child.stdout.read(1 << 16):
        nbytes += len(piece)
    message = child.stderr.read().decode()
    if child.wait():
        raise SystemExit(f"lmz failed: {message}")
    feeder.join()
    return int(message) << 10, nbytes


def large_text(nbytes: int) -> bytes:
    """The text of dev as often as it takes, a number before each copy."""
    text = text_of_dev(nbytes)
    return b"".join(b"%d\n" % i + text for i in range(nbytes // len(text) + 1))[:nbytes]


def seconds(arguments: list[str], rounds: int, stdin: bytes = b"") -> float:
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        subprocess.run([*LMZ, *arguments], input=stdin, stdout=subprocess.DEVNULL, check=True)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mb", type=float, default=32)
    parser.add_argument("--gb", type=float, default=0)
    parser.add_argument("--levels", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--threads", type=int, help="of lmz -dc; its own choice if not given")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    if not Path("/proc/self/status").exists():
        raise SystemExit("this needs Linux: it reads the peak from /proc")
    print(f"lmcodec {lmcodec.__version__}, {options.threads or 'lmz chooses its'} threads\n")
    print("| decoding | original bytes | peak memory, MiB |\n|---|---:|---:|")
    text = large_text(int(options.mb * 1e6))
    for level in options.levels:
        inputs: dict[str, Iterable[bytes]] = {
            "blocks": [lmcodec.compress(text, level)],
            "chain": [lmcodec.compress(text, level, solid=True)],
        }
        if options.gb:
            part = text[: 4 << 20]
            n_frame = int(options.gb * 1e9) // len(part) + 1
            inputs["pipe"] = itertools.repeat(lmcodec.compress(part, level), n_frame)
        for name, pieces in inputs.items():
            peak, nbytes = peak_of_decoding(pieces, options.threads)
            print(f"| level {level}, {name} | {nbytes:,} | {peak / 2**20:.0f} |", flush=True)

    print("\n| start-up | seconds |\n|---|---:|")
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "small"
        small.write_bytes(text[:100])
        runs = {"lmz -V": ["-V"]}
        for level in options.levels:
            compressed = Path(folder) / f"{level}.lmz"
            compressed.write_bytes(lmcodec.compress(text[:100], level))
            runs[f"100 bytes, level {level}"] = [f"-{level}", "-c", os.fspath(small)]
            runs[f"and back, level {level}"] = ["-dc", os.fspath(compressed)]
        for name, arguments in runs.items():
            print(f"| {name} | {seconds(arguments, options.rounds):.3f} |")


if __name__ == "__main__":
    main()
