"""Speed of the codec beside `zpaq -m5` and `7z` with PPMd, all on one thread; what a second thread gives.

    python benchmarks/codec_speed.py [--file FILE] [--nbytes 4194304] [--rounds 3] [--levels 1 2]

The text is FILE, or the prose and technical files of `dev` one after another. All compressors take turns,
round by round, so that what else the machine does hits them alike; printed are medians, and their ratios to
each peer's. The codec runs in this process, the peers as programs, which start in milliseconds. All that is
decompressed is compared with the original. A peer that is not on PATH is listed as missing.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from codec_bpb import KINDS

import lmcodec
from lmcodec.train.corpus import corpora_dir

# Size of what was compressed; seconds to compress and to decompress.
Timing = tuple[int, float, float]


def text_of_dev(nbytes: int, kinds: Sequence[str] = ("english", "technical", "languages")) -> bytes:
    dev = corpora_dir() / "dev"
    if not dev.is_dir():
        raise SystemExit(f"{dev} is missing: set LMCODEC_CORPORA, or name a --file")
    stems = [stem for kind in kinds for stem in KINDS[kind].split()]
    return b"".join(path.read_bytes() for stem in stems for path in sorted(dev.glob(f"{stem}.*")))[:nbytes]


def time_codec(data: bytes, level: int, threads: int = 1, block_nbytes: int | None = None) -> Timing:
    began = time.perf_counter()
    frame = lmcodec.compress(data, level, threads=threads, block_size=block_nbytes)
    between = time.perf_counter()
    original = lmcodec.decompress(frame, threads=threads)
    ended = time.perf_counter()
    _require(original == data, f"lmcodec, level {level}")
    return len(frame), between - began, ended - between


def warm_up(data: bytes, levels: Sequence[int]) -> None:
    """Loads modules and models, which the first run would have to pay for."""
    for level in levels:
        time_codec(data[: 1 << 16], level)


def time_program(data: bytes, compress: list[str], decompress: list[str]) -> Timing:
    """Two programs: `text` to `archive` in the folder they run in, and back to the folder `out`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "text").write_bytes(data)
        (folder / "out").mkdir()
        began = time.perf_counter()
        _run(compress, folder)
        between = time.perf_counter()
        _run(decompress, folder)
        ended = time.perf_counter()
        archive = next(path for path in folder.iterdir() if path.stem == "archive")
        _require((folder / "out" / "text").read_bytes() == data, compress[0])
        return archive.stat().st_size, between - began, ended - between


PEERS = {
    "zpaq -m5": (
        ["zpaq", "a", "archive.zpaq", "text", "-m5", "-t1"],
        ["zpaq", "x", "archive.zpaq", "text", "-to", "out/text", "-t1"],
    ),
    "7z PPMd": (
        ["7z", "a", "-bd", "-mmt=1", "-m0=PPMd:o=16:mem=256m", "archive.7z", "text"],
        ["7z", "x", "-bd", "-mmt=1", "-oout", "archive.7z"],
    ),
}
PACKAGES = {"zpaq": "zpaq", "7z": "p7zip-full"}  # of Debian


def _run(arguments: list[str], folder: Path) -> None:
    run = subprocess.run(arguments, cwd=folder, capture_output=True, encoding="utf-8")
    _require(run.returncode == 0, f"{' '.join(arguments)}: {run.stderr or run.stdout}")


def _require(good: bool, what: str) -> None:
    if not good:
        raise SystemExit(f"{what}: failed, or does not give the original back")


def measure(contenders: Mapping[str, Callable[[], Timing]], rounds: int) -> dict[str, Timing]:
    """Medians, all contenders taking turns."""
    timings: dict[str, list[Timing]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            timings[name].append(contender())
    return {
        name: (runs[0][0], statistics.median(r[1] for r in runs), statistics.median(r[2] for r in runs))
        for name, runs in timings.items()
    }


def print_table(nbytes: int, timings: dict[str, Timing], references: list[str]) -> None:
    """A Markdown table: sizes, MB/s, and how many times as fast as each reference, both ways."""
    head = ["", "bytes", "bpb", "MB/s in", "MB/s out", *(f"× {name}, in and out" for name in references)]
    print("| " + " | ".join(head) + " |\n|---" + "|---:" * (len(head) - 1) + "|")
    for name, (size, there, back) in timings.items():
        cells = [name, f"{size:,}", f"{8 * size / nbytes:.3f}"]
        cells += [f"{nbytes / 1e6 / there:.3f}", f"{nbytes / 1e6 / back:.3f}"]
        cells += [f"{timings[r][1] / there:.2f}, {timings[r][2] / back:.2f}" for r in references]
        print("| " + " | ".join(cells) + " |")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--file", type=Path, help="a text of your own")
    parser.add_argument("--nbytes", type=int, default=4 << 20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--levels", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    data = options.file.read_bytes()[: options.nbytes] if options.file else text_of_dev(options.nbytes)
    print(f"lmcodec {lmcodec.__version__}: {len(data):,} bytes, medians of {options.rounds} rounds\n")

    there = [name for name in PEERS if shutil.which(name.split()[0])]
    warm_up(data, options.levels)
    contenders = {f"level {level}": partial(time_codec, data, level) for level in options.levels}
    contenders |= {name: partial(time_program, data, *PEERS[name]) for name in there}
    print_table(len(data), measure(contenders, options.rounds), there)
    for name in sorted(PEERS.keys() - set(there)):
        print(f"missing: {name}, of Debian's package {PACKAGES[name.split()[0]]}\n")

    half = -(-len(data) // 2)
    print(f"Two blocks of {half:,} bytes\n")
    contenders = {
        f"level {level}, threads {n}": partial(time_codec, data, level, n, half)
        for level in options.levels
        for n in (1, 2)
    }
    timings = measure(contenders, options.rounds)
    print_table(len(data), timings, [])
    for level in options.levels:
        one, two = (timings[f"level {level}, threads {n}"] for n in (1, 2))
        print(f"level {level}: two threads are {one[1] / two[1]:.2f} and {one[2] / two[2]:.2f} times as fast")


if __name__ == "__main__":
    main()
