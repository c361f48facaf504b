"""An imported model on the dev set: sizes by kind beside paq8px and `lmz -6`, and speeds.

    python benchmarks/imported_models.py smollm2 [--nbytes 131072] [--decode NAME ...] [--only NAME ...]

Prints a line for each file as it is done, then the totals of every kind. Speeds are those of one process
that has loaded the model, on the processors it may use.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections import defaultdict

from codec_bpb import KINDS

from lmcodec.codec import Compressor, compress, decompress
from lmcodec.lm import store
from lmcodec.train.corpus import corpora_dir

KIND_OF = {stem: kind for kind, stems in KINDS.items() for stem in stems.split()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--nbytes", type=int, default=128 << 10)
    parser.add_argument("--decode", nargs="*", default=[], help="files that are decoded, too, and compared")
    parser.add_argument("--only", nargs="*", help="files; all by default")
    options = parser.parse_args()
    folder = corpora_dir() / "dev"
    with open(folder / "PEERS.csv", encoding="utf-8", newline="") as file:
        peers = {row["file"]: row for row in csv.DictReader(file)}
    store.load(store.find(options.model))
    compress(b"warm " * 100, 6)
    sums: dict[str, list[int]] = defaultdict(lambda: [0] * 4)
    for name in options.only or sorted(peers):
        data = (folder / name).read_bytes()[: options.nbytes]
        own = len(compress(data, 6))
        compressor = Compressor(6, model=options.model)
        begin = time.perf_counter()
        packed = compressor.compress(data) + compressor.flush()
        seconds = time.perf_counter() - begin
        choice = compressor.last_choice
        taken = choice.model.name if choice else "-"
        paq = int(peers[name]["paq8px"]) if options.nbytes == 128 << 10 else 0
        speeds = f"in {len(data) / seconds / 1e3:6.2f} KB/s"
        if name in options.decode:
            begin = time.perf_counter()
            if decompress(packed) != data:
                raise SystemExit(f"{name}: is not restored")
            speeds += f", out {len(data) / (time.perf_counter() - begin) / 1e3:6.2f} KB/s"
        beside = f"{len(packed) / paq:.3f} of paq8px" if paq else ""
        print(
            f"{name:24} {len(data):7} {len(packed):6} ({8 * len(packed) / len(data):.3f} bpb) {taken:8} "
            f"{len(packed) / own:.3f} of -6  {beside}  {speeds}",
            flush=True,
        )
        for kind in (KIND_OF[name.split(".")[0]], "total"):
            for i, n in enumerate((len(data), len(packed), own, paq)):
                sums[kind][i] += n
    for kind, (n, packed_nbytes, own, paq) in sums.items():
        bpb = 8 * packed_nbytes / n
        beside = f"{packed_nbytes / paq:.3f} of paq8px" if paq else ""
        print(f"{kind:12} {packed_nbytes:8} {bpb:.3f} bpb  {packed_nbytes / own:.3f} of -6  {beside}")


if __name__ == "__main__":
    main()
