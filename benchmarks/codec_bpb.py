"""Sizes of whole frames on `dev`, beside other compressors.

    python benchmarks/codec_bpb.py [--levels 1 2] [--nbytes 131072] [--jobs N] [--csv FILE]

Compresses the first --nbytes bytes of every file of at least 10,000 with `lmcodec.compress` and decompresses
the frame again; a frame that does not give the original back ends the run. Prints sizes file by file, by kind
and in total. PEERS.csv says what `7z` with PPMd, `zpaq -m5` and `paq8px -6` make of the first 131,072 bytes:
for that --nbytes, and no other, the ratios are shown. Peers' bytes have their archives' overhead in them.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import lmcodec
from lmcodec.train.corpus import corpora_dir

KINDS = {
    "english": "buchan flatland frost_poems ibsen_play lewis northup_crlf yoga_raw",
    "technical": "History Readme blog_one blog_posts vue_guide philosophy philosophy_module wikitext2 "
    "list_teaching",
    "languages": "capuana_it fialho_pt javascript_ru news_zh react_ko",
    "code": "brotli brotli_enc express mux numcodecs playTests safetensors test_express vue_site",
    "structured": "Apache_2k OpenSSH countries diamonds express_log yahoo",
}
PEERS = ("ppmd", "zpaq5", "paq8px")
PEERS_NBYTES = 131_072
LEAST_NBYTES = 10_000


def frame_nbytes(task: tuple[Path, int], nbytes: int) -> int:
    """Size of the frame that holds a file's beginning, once it has been decompressed again.

    Args:
      task: the file, the level.
      nbytes: how much of the file.
    """
    path, level = task
    original = path.read_bytes()[:nbytes]
    frame = lmcodec.compress(original, level, threads=1)
    if lmcodec.decompress(frame, threads=1) != original:
        raise SystemExit(f"{path.name}, level {level}: the frame does not give the original back")
    return len(frame)


def table(levels: list[int], peers: Sequence[str], rows: Iterable[tuple[str, dict[str, int]]]) -> list[str]:
    """Lines of a Markdown table: bytes and bits per byte at each level, ratios of each level to each peer."""
    head = ["", "bytes", *(f"level {level}" for level in levels), *(f"bpb {level}" for level in levels)]
    head += [f"{level} / {peer}" for level in levels for peer in peers]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for name, row in rows:
        ours = [row[f"level{level}"] for level in levels]
        cells = [name, f"{row['bytes']:,}", *(f"{n:,}" for n in ours)]
        cells += [f"{8 * n / row['bytes']:.3f}" for n in ours]
        cells += [f"{n / row[peer]:.3f}" for n in ours for peer in peers]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def dev_peers() -> dict[str, dict[str, str]]:
    """PEERS.csv by file, in order of names."""
    with open(corpora_dir() / "dev" / "PEERS.csv", encoding="utf-8") as file:
        return {row["file"]: row for row in sorted(csv.DictReader(file), key=lambda row: row["file"])}


def dev_paths() -> list[Path]:
    """The files of `dev` that are measured, those of at least 10,000 bytes."""
    paths = [corpora_dir() / "dev" / name for name in dev_peers()]
    return [path for path in paths if path.stat().st_size >= LEAST_NBYTES]


def sizes_of_dev(
    levels: list[int], nbytes: int = PEERS_NBYTES, jobs: int = 1
) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, int]]]:
    """Frames' sizes, with peers' where they are for the same bytes.

    Returns:
      by file, then by kind and "total": `bytes`, `level1`, …, and the names of PEERS.
    """
    paths = dev_paths()
    tasks = [(path, level) for path in paths for level in levels]
    work = partial(frame_nbytes, nbytes=nbytes)
    if jobs > 1:
        with multiprocessing.Pool(jobs) as pool:
            sizes = dict(zip(tasks, pool.map(work, tasks, chunksize=1), strict=True))
    else:
        sizes = {task: work(task) for task in tasks}
    peers = dev_peers() if nbytes == PEERS_NBYTES else {}
    kinds = {stem: kind for kind, stems in KINDS.items() for stem in stems.split()}
    files: dict[str, dict[str, int]] = {}
    sums: dict[str, dict[str, int]] = {kind: {} for kind in (*KINDS, "total")}
    for path in paths:
        row = {"bytes": min(path.stat().st_size, nbytes)}
        row |= {f"level{level}": sizes[path, level] for level in levels}
        row |= {peer: int(peers[path.name][peer]) for peer in PEERS if peers}
        files[path.name] = row
        for kind in (kinds[path.name.split(".")[0]], "total"):
            sums[kind] = {key: sums[kind].get(key, 0) + value for key, value in row.items()}
    return files, sums


def n_smaller(files: dict[str, dict[str, int]], level: int, peers: Sequence[str]) -> int:
    """How many files a level makes smaller than any of the peers does."""
    return sum(row[f"level{level}"] < min(row[peer] for peer in peers) for row in files.values())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--levels", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--nbytes", type=int, default=PEERS_NBYTES)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--csv", type=Path, help="write the sizes file by file")
    options = parser.parse_args()
    files, sums = sizes_of_dev(options.levels, options.nbytes, options.jobs)
    shown = PEERS if options.nbytes == PEERS_NBYTES else ()
    print(f"lmcodec {lmcodec.__version__}, the first {options.nbytes:,} bytes of {len(files)} files\n")
    print("\n".join(table(options.levels, shown, [*files.items(), *sums.items()])))
    print()
    for level in options.levels:
        for names in (("ppmd", "zpaq5"), ("paq8px",)) if shown else ():
            won = n_smaller(files, level, names)
            print(f"level {level}: {won} of {len(files)} files are smaller than {' and '.join(names)}")
    if options.csv:
        with open(options.csv, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["file", *next(iter(files.values()))])
            writer.writeheader()
            writer.writerows({"file": name, **row} for name, row in files.items())


if __name__ == "__main__":
    main()
