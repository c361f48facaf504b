"""Bits per byte of a network alone (no context mixing, no coder) on `dev`, beside other compressors.

    python benchmarks/network_bpb.py EXPORT [--nbytes 131072] [--float] [--round-state]

Every file is read from its start, the first 131,072 bytes of it, as one stream. `--float` measures without
rounding, `--round-state` with the recurrent state rounded at every step as inference does. Products in
float32.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import torch
from codec_bpb import KINDS

from lmcodec.lm.vocab import Vocabulary
from lmcodec.train.corpus import corpora_dir
from lmcodec.train.exports import load_export
from lmcodec.train.loss import NATS_TO_BITS, nats_of
from lmcodec.train.net import Net, WeightRounding


def bits_of(net: Net, vocabulary: Vocabulary, texts: list[bytes], window: int = 256) -> list[float]:
    """Bits of each text under the network, all read side by side from the start of a document."""
    tokens = [vocabulary.segment(t).astype(np.int64) for t in texts]
    n_position, n_lane = max(map(len, tokens)), len(texts)
    inputs = np.zeros((n_position, n_lane), np.int32)
    targets = np.zeros((n_position, n_lane), np.int64)
    inside = np.zeros((n_position, n_lane), bool)
    for b, t in enumerate(tokens):
        targets[: len(t), b] = t
        inputs[1 : len(t), b] = t[:-1]
        inside[: len(t), b] = True
    inputs[0] = net.config.bos
    begins = np.zeros((n_position, n_lane), bool)
    begins[0] = True
    bits = np.zeros(n_lane)
    state, head = net.start(n_lane), net.head()
    with torch.no_grad():
        for first in range(0, n_position, window):
            part = slice(first, first + window)
            # Lanes that have ended are left out of the output layer, which is most of the work.
            hidden, state = net(torch.from_numpy(inputs[part]), torch.from_numpy(begins[part]), state)
            where = torch.from_numpy(inside[part])
            nats = nats_of(hidden[where], head, torch.from_numpy(targets[part])[where], net.dtype)
            lane = np.nonzero(inside[part])[1]
            bits += np.bincount(lane, nats.double().numpy() * NATS_TO_BITS, minlength=n_lane)
    return bits.tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("export", type=Path)
    parser.add_argument("--nbytes", type=int, default=131_072)
    parser.add_argument("--float", action="store_true")
    parser.add_argument("--round-state", action="store_true")
    options = parser.parse_args()
    vocabulary = Vocabulary.load()
    net, document = load_export(options.export, vocabulary)
    if options.float:
        net.quantise(False, WeightRounding())
    net.round_state = options.round_state
    dev = corpora_dir() / "dev"
    with open(dev / "PEERS.csv", encoding="utf-8") as file:
        peers = {row["file"]: row for row in csv.DictReader(file)}
    names = sorted(peers)
    texts = [(dev / name).read_bytes()[: options.nbytes] for name in names]
    bits = bits_of(net, vocabulary, texts)
    seen = document["trained_nbytes"] / 1e6
    print(f"{document['name']} at step {document['step']:,}, {seen:.0f} MB of training text")
    print("bits per byte; ppmd and paq8px of the first 131,072 bytes, whatever --nbytes says")
    print(f"{'file':26s} {'bytes':>9s} {'network':>8s} {'ppmd':>7s} {'paq8px':>7s}")
    kinds = {stem: kind for kind, stems in KINDS.items() for stem in stems.split()}
    # kind -> bytes, bits of the network, bytes, bits of ppmd, bits of paq8px
    sums: dict[str, np.ndarray] = {}
    for name, text, b in zip(names, texts, bits, strict=True):
        peer = {key: float(value) for key, value in peers[name].items() if key != "file"}
        row = np.array([len(text), b, peer["bytes"], 8 * peer["ppmd"], 8 * peer["paq8px"]])
        print(_line(name, row))
        for kind in (kinds[name.split(".")[0]], "total"):
            sums[kind] = sums.get(kind, np.zeros(5)) + row
    for kind, row in sums.items():
        print(_line(kind, row))


def _line(name: str, row: np.ndarray) -> str:
    nbytes, bits, peer_nbytes, *peers = row.tolist()
    figures = [bits / nbytes, *(b / peer_nbytes for b in peers)]
    return f"{name:26s} {int(nbytes):9,} " + " ".join(f"{x:7.3f}" for x in figures)


if __name__ == "__main__":
    main()
