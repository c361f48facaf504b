"""Speed on one thread, two, and by default, beside programs that want the same processors.

    python benchmarks/busy_machine.py [--levels 1 5 6] [--nbytes 262144] [--rounds 2] [--only "two loops" …]

The loads: none; one busy loop with the lowest priority; one of equal priority; two; a program that starts
short processes one after another; and, where control groups may be made (Linux, version 2, as root), a quota
of 1.2 processors for the process that codes. In each, level by level, all numbers of threads in turns, in and
out: KB/s of the fastest round, and all rounds together as a part of one thread's speed. Text: English books
of the development set.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import lmcodec
from lmcodec.train.corpus import corpora_dir

LOOP = "while True: pass"
CHILDREN = """
import subprocess, sys
while True: subprocess.run([sys.executable, "-S", "-c", "sum(range(100000))"])
"""
QUOTA = Path("/sys/fs/cgroup/lmcodec-busy")
THREADS = (1, 2, None)


@contextmanager
def beside(code: str, nice: int = 0) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", f"import os; os.nice({nice})\n{code}"], start_new_session=True
    )
    try:
        yield
    finally:
        os.killpg(process.pid, 9)
        process.wait()


@contextmanager
def quota() -> Iterator[None]:
    """Raises OSError where this process may not set it."""
    QUOTA.mkdir()
    try:
        (QUOTA / "cpu.max").write_text("120000 100000", encoding="ascii")
        (QUOTA / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
        try:
            yield
        finally:
            (QUOTA.parent / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
    finally:
        QUOTA.rmdir()


LOADS = {
    "idle": lambda: (),
    "loop at nice 19": lambda: (beside(LOOP, 19),),
    "loop": lambda: (beside(LOOP),),
    "two loops": lambda: (beside(LOOP), beside(LOOP)),
    "short processes": lambda: (beside(CHILDREN, 19),),
    "quota of 1.2": lambda: (quota(),),
}


def measure(text: bytes, level: int, rounds: int) -> dict[tuple[int | None, str], list[float]]:
    """Seconds, by threads and direction."""
    took: dict[tuple[int | None, str], list[float]] = {}
    packed = lmcodec.compress(text, level)
    for _ in range(rounds):
        for threads in THREADS:
            begin = time.perf_counter()
            if lmcodec.compress(text, level, threads=threads) != packed:
                raise SystemExit(f"level {level}, {threads} threads: another frame")
            middle = time.perf_counter()
            if lmcodec.decompress(packed, threads=threads) != text:
                raise SystemExit(f"level {level}, {threads} threads: not restored")
            took.setdefault((threads, "in"), []).append(middle - begin)
            took.setdefault((threads, "out"), []).append(time.perf_counter() - middle)
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--levels", nargs="+", type=int, default=[1, 5, 6])
    parser.add_argument("--nbytes", type=int, default=256 << 10)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=LOADS, default=list(LOADS), metavar="LOAD")
    arguments = parser.parse_args()
    books = b"".join((corpora_dir() / "dev" / name).read_bytes() for name in ("buchan.txt", "flatland.txt"))
    text = (books * (1 + arguments.nbytes // len(books)))[: arguments.nbytes]
    print("| load | level | direction | one thread, KB/s | two | default | two of one | default of one |")
    print("|---|---:|---|---:|---:|---:|---:|---:|")
    for name in arguments.only:
        with ExitStack() as stack:
            try:
                for load in LOADS[name]():
                    stack.enter_context(load)
            except OSError as error:
                print(f"| {name} | left out: {error} |")
                continue
            for level in arguments.levels:
                took = measure(text, level, arguments.rounds)
                for direction in ("in", "out"):
                    best = [f"{len(text) / min(took[n, direction]) / 1e3:.0f}" for n in THREADS]
                    sums = [sum(took[n, direction]) for n in THREADS]
                    parts = [f"{sums[0] / each:.2f}" for each in sums[1:]]
                    print(f"| {name} | {level} | {direction} | {' | '.join(best + parts)} |", flush=True)


if __name__ == "__main__":
    main()
