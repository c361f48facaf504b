"""Segmentation speed of the kernel (MB/s) and bytes per token, for every file of a folder (default: dev)."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from lmcodec.lm.vocab import Vocabulary
from lmcodec.train.corpus import corpora_dir


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else corpora_dir() / "dev"
    vocabulary = Vocabulary.load()
    vocabulary.segment(b"")  # build the trie
    total_nbytes = total_seconds = 0.0
    print(f"{'file':28s} {'bytes':>9s} {'bytes/token':>11s} {'MB/s':>7s}")
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        if not data:
            continue
        repeat = max(1, 8_000_000 // len(data))
        began = time.perf_counter()
        for _ in range(repeat):
            tokens = vocabulary.segment(data)
        seconds = time.perf_counter() - began
        assert vocabulary.restore(tokens) == data
        total_nbytes += repeat * len(data)
        total_seconds += seconds
        speed = repeat * len(data) / seconds / 1e6
        print(f"{path.name:28s} {len(data):9,} {len(data) / len(tokens):11.3f} {speed:7.1f}")
    print(f"{'total':28s} {'':9s} {'':11s} {total_nbytes / total_seconds / 1e6:7.1f}")


if __name__ == "__main__":
    main()
