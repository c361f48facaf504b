"""How long flushed events are on their way: written, flushed, decoded and read, by pipe, socket and command.

    python benchmarks/flush_latency.py [--levels 1 2 6 9] [--nbytes 100 300 900] [--events 60] [FILE]

A writer in one thread (`lmcodec.open`) flushes an event of so many bytes and waits until a reader has it: in
another thread behind a pipe or a socket, or a process of `lmz -dc` behind pipes. Milliseconds from the
event's `write` to its last byte at the reader: the first event, which loads models on both sides and makes
tables, the median and the largest of those after the fifth. FILE is what the events are taken from, the
corpora's log by default.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import lmcodec
from lmcodec.train.corpus import corpora_dir

WARM = 5  # events that are not counted


def pipe() -> tuple[BinaryIO, Callable[[int], bytes], Callable[[], object]]:
    read, write = os.pipe()
    file = lmcodec.open(os.fdopen(read, "rb", 0), "rb")
    return os.fdopen(write, "wb", 0), file.read1, file.close


def sockets() -> tuple[BinaryIO, Callable[[int], bytes], Callable[[], object]]:
    one, other = socket.socketpair()
    file = lmcodec.open(one.makefile("rb"), "rb")
    written: Any = other.makefile("wb", 0)
    other.close()
    return written, file.read1, file.close


def command() -> tuple[BinaryIO, Callable[[int], bytes], Callable[[], object]]:
    lmz = [sys.executable, "-m", "lmcodec.cli.lmz", "-dc"]
    process = subprocess.Popen(lmz, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    assert process.stdin is not None
    assert process.stdout is not None
    read = process.stdout.fileno()
    return process.stdin, lambda n: os.read(read, n), process.wait  # type: ignore[return-value]


WAYS = {"pipe": pipe, "socket": sockets, "command": command}


def latencies(way: str, level: int, events: list[bytes]) -> list[float]:
    """Milliseconds of each event."""
    file, read, close = WAYS[way]()
    arrived = threading.Condition()
    n_read = [0]

    def reader() -> None:
        while data := read(1 << 16):
            with arrived:
                n_read[0] += len(data)
                arrived.notify()
        close()

    thread = threading.Thread(target=reader)
    thread.start()
    took = []
    with file, lmcodec.open(file, "wb", level=level) as out:
        for i, event in enumerate(events):
            n_written = sum(map(len, events[: i + 1]))
            began = time.perf_counter()
            out.write(event)
            out.flush()
            with arrived:
                if not arrived.wait_for(lambda n=n_written: n_read[0] == n, timeout=60):  # type: ignore[misc]
                    raise SystemExit(f"{way}, level {level}: {n_read[0]} of {n_written} bytes came")
            took.append((time.perf_counter() - began) * 1e3)
    thread.join()
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("file", nargs="?", type=Path, help="what events are taken from")
    parser.add_argument("--levels", nargs="+", type=int, default=[1, 2, 6, 9])
    parser.add_argument("--nbytes", nargs="+", type=int, default=[100, 300, 900])
    parser.add_argument("--events", type=int, default=60)
    arguments = parser.parse_args()
    text = (arguments.file or corpora_dir() / "dev" / "Apache_2k.log").read_bytes()
    print("| level | bytes | way | first, ms | median | most after five |\n|---:|---:|---|---:|---:|---:|")
    for level in arguments.levels:
        for nbytes in arguments.nbytes:
            events = [text[at : at + nbytes] for at in range(0, arguments.events * nbytes, nbytes)]
            for way in WAYS:
                took = latencies(way, level, events)
                counted = took[WARM:]
                row = f"{took[0]:.0f} | {statistics.median(counted):.1f} | {max(counted):.1f}"
                print(f"| {level} | {nbytes} | {way} | {row} |", flush=True)


if __name__ == "__main__":
    main()
