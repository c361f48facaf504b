"""One Ray worker against two, in turns: rates, memory, bytes read and written.

    python benchmarks/ray_workers.py [--level 2] [--files 16] [--nbytes 500000] [--rounds 3]

prints for every round the seconds from the first part that is done to the last (without the start of the
cluster and of its workers), and in the end what a worker does in a second of wall time and of processor time.
On a machine that does other things wall times say little: processor time is beside them.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--level", type=int, default=2)
    parser.add_argument("--files", type=int, default=16)
    parser.add_argument("--nbytes", type=int, default=500_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--text", type=Path, help="what the files are cut from; synthetic text by default")
    given = parser.parse_args()

    import ray

    from lmcodec.integrations import ray as integration

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        text = given.text.read_bytes() if given.text else b""
        for i in range(given.files):
            piece = text[i * given.nbytes : (i + 1) * given.nbytes] or _words(i, given.nbytes)
            (folder / "in" / f"{i:04}.txt").write_bytes(piece)
        ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
        rates: dict[int, list[float]] = {1: [], 2: []}
        for number in range(given.rounds):
            for workers in (1, 2):
                rates[workers].append(_round(integration, folder, number, workers, given.level))
        ray.shutdown()
    ratio = statistics.median(rates[2]) / statistics.median(rates[1])
    print(f"two workers against one, medians: {ratio:.2f}")


def _words(seed: int, nbytes: int) -> bytes:
    import random

    rng = random.Random(seed)
    words = [bytes(rng.choices(b"etaoinshrdlu", k=rng.randint(2, 8))) for _ in range(2000)]
    return b" ".join(rng.choices(words, k=nbytes // 5))[:nbytes]


def _round(integration: Any, folder: Path, number: int, workers: int, level: int) -> float:
    """One run; bytes a second from the first part that is done on."""
    times: list[tuple[float, int]] = []
    done = integration.compress(
        str(folder / "in"),
        str(folder / f"out-{number}-{workers}"),
        level=level,
        workers=workers,
        progress=lambda row: times.append((time.monotonic(), row["nbytes"])),
    )
    assert not done.failed
    total = done.total()
    first, last = times[0][0], times[-1][0]
    rate = sum(nbytes for _, nbytes in times[1:]) / (last - first)
    print(
        f"round {number}, {workers} workers: {last - first:.1f} s, {rate / 1000:.0f} kB/s; each "
        f"{total.nbytes / total.seconds / 1000:.0f} kB/s of wall time, "
        f"{total.nbytes / total.cpu_seconds / 1000:.0f} of processor time; "
        f"peak {total.peak_nbytes >> 20} MiB; "
        f"read {total.read_nbytes:,}, written {total.written_nbytes:,} bytes; all {done.seconds:.1f} s",
        flush=True,
    )
    return rate


if __name__ == "__main__":
    main()
