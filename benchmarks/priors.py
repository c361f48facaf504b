"""Small records coded one by one: with a prior, without one, and by zstd with a dictionary.

    python benchmarks/priors.py [--kinds json log commit mail] [--levels 1 2 6] [--size 102400] [--test 100]

Records come from the corpora (LMCODEC_CORPORA): turns of dialogues as JSON events and lines of an access log
(train/structured), commit messages (train/web_short), paragraphs of a mailing list (dev). The shipped
networks have seen `train`, not `dev`: at level 6 the mails are the fair kind. Records are shuffled with a
fixed seed; the test part is seen by nothing that is trained. Prints, for each kind, bytes a record
(everything included: frame, check) and records a second of processor time of one thread, both ways. zstd is
python-zstandard at level 19 with a dictionary of 110 KB, the better of a trained one and the records
themselves; without a check. The Python package brotli takes no dictionary: level 11 without one.
"""

from __future__ import annotations

import argparse
import json
import lzma
import random
import re
import time
from collections.abc import Callable
from typing import Any

import lmcodec
from lmcodec.train.corpus import corpora_dir

DICTIONARY_NBYTES = 110 << 10


def documents(name: str) -> list[bytes]:
    return lzma.open(corpora_dir() / "train" / f"{name}.txt.xz").read().split(b"\0")


def json_events() -> list[bytes]:
    records = []
    decoder = json.JSONDecoder()
    for document in documents("structured"):
        if not all(word in document for word in (b'"utterance"', b'"frames"', b'"speaker"')):
            continue
        text, at = document.decode("utf-8", "replace"), 0
        while (at := text.find("{", at)) >= 0:
            try:
                found, end = decoder.raw_decode(text, at)
            except ValueError:
                at += 1
                continue
            if {"utterance", "frames", "speaker"} <= set(found):
                records.append(json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode())
                at = end
            else:
                at += 1
    return records


def log_lines() -> list[bytes]:
    for document in documents("structured"):
        lines = document.split(b"\n")
        if len(lines) > 500 and b'"GET /' in lines[0] + lines[5]:
            return lines
    raise SystemExit("no access log in train/structured")


def commit_messages() -> list[bytes]:
    records = []
    for document in documents("web_short"):
        if document.startswith(b"commit "):
            for commit in re.split(rb"\n(?=commit [0-9a-f]{40}\n)", document):
                _, _, body = commit.partition(b"\n\n")
                records.append(b"\n".join(line.strip() for line in body.strip().split(b"\n")))
    return records


def mails() -> list[bytes]:
    data = (corpora_dir() / "dev" / "list_teaching.mbox").read_bytes()
    return re.split(rb"\n\s*\n", data)


KINDS: dict[str, Callable[[], list[bytes]]] = {
    "json": json_events,
    "log": log_lines,
    "commit": commit_messages,
    "mail": mails,
}


def timed(work: Callable[[], Any], n: int, rounds: int) -> tuple[Any, float]:
    """What `work` gives, and calls a second of processor time: the best of some rounds."""
    best = 0.0
    for _ in range(rounds):
        begin = time.process_time()
        result = work()
        best = max(best, n / (time.process_time() - begin))
    return result, best


def zstd_nbytes(train: list[bytes], test: list[bytes]) -> dict[str, float]:
    import zstandard

    dictionaries = {
        "trained": lambda: zstandard.train_dictionary(DICTIONARY_NBYTES, train),
        "records": lambda: zstandard.ZstdCompressionDict(b"\n".join(train)[-DICTIONARY_NBYTES:]),
    }
    sizes = {}
    for name, make in dictionaries.items():
        try:
            compressor = zstandard.ZstdCompressor(level=19, dict_data=make())
        except zstandard.ZstdError as error:
            print(f"  zstd, {name}: {error}")
            continue
        sizes[name] = sum(len(compressor.compress(record)) for record in test) / len(test)
    return sizes


def run(kind: str, levels: list[int], size: int, n_test: int, rounds: int) -> None:
    import brotli

    records = [record for record in KINDS[kind]() if 150 <= len(record) <= 1000]
    random.Random(22).shuffle(records)
    test, train = records[:n_test], records[n_test:]
    mean = sum(map(len, test)) / len(test)
    print(f"{kind}: {len(train)} records to train on, {len(test)} to test, {mean:.0f} bytes each", flush=True)
    zstd = zstd_nbytes(train, test)
    best = min(zstd.values())
    print(f"  zstd -19 -D: {', '.join(f'{name} {nbytes:.1f}' for name, nbytes in zstd.items())}")
    print(f"  brotli -11, no dictionary: {sum(len(brotli.compress(r)) for r in test) / len(test):.1f}")
    begin = time.process_time()
    prior = lmcodec.Prior.train(train, size=size)
    print(
        f"  prior {prior.id.hex()}: {len(prior.text)} bytes of text, file {len(prior.pack())}, "
        f"{prior.card['choice']}, trained in {time.process_time() - begin:.1f} s",
        flush=True,
    )
    for level in levels:
        without = sum(len(lmcodec.compress(record, level)) for record in test[:20]) / 20
        begin = time.process_time()
        lmcodec.compress(b"x", level, prior=prior)
        first = time.process_time() - begin
        frames, encoded = timed(
            lambda level=level: [lmcodec.compress(r, level, prior=prior) for r in test], len(test), rounds
        )
        decoded, decoding = timed(
            lambda frames=frames: [lmcodec.decompress(f, prior=prior) for f in frames], len(test), rounds
        )
        assert decoded == test
        each = sum(map(len, frames)) / len(frames)
        print(
            f"  level {level}: {each:.1f} bytes a record, {each / best:.2f} of zstd; "
            f"without a prior (20 records) {without:.1f}; {encoded:.0f} records/s in, {decoding:.0f} out; "
            f"made ready in {first:.2f} s",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--levels", nargs="+", type=int, default=[1, 2, 6])
    parser.add_argument("--size", type=int, default=100 << 10, help="bytes of the prior's text at most")
    parser.add_argument("--test", type=int, default=100, help="records kept for the test")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    for kind in given.kinds:
        run(kind, given.levels, given.size, given.test, given.rounds)


if __name__ == "__main__":
    main()
