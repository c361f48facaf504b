"""What the integers cost: a network's bits per byte in float, with rounded weights, and as an integer model.

    python benchmarks/integer_bpb.py EXPORT [--nbytes 16384] [--levels N] [--step S] [--table-step S]

The network alone on the beginnings of `dev`'s files, side by side, each from the start of a document. The
first column is the forward pass in float with the weights as they were trained; activations are clipped and
rounded as in training, without which it is another network. The others round the weights as the export says,
or as --levels, --step and --table-step say instead. Ratios are to the first column, by kind of text.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from codec_bpb import KINDS
from network_bpb import bits_of

from lmcodec.lm.native import NativeNetwork
from lmcodec.lm.vocab import Vocabulary
from lmcodec.train.corpus import corpora_dir
from lmcodec.train.export import integer_model
from lmcodec.train.exports import load_export
from lmcodec.train.net import WeightRounding


def integer_bits(network: NativeNetwork, texts: list[bytes], window: int = 32) -> list[float]:
    """Bits of each text under the integer model's frequencies, all read side by side."""
    model = network.model
    tokens = [model.vocabulary.segment(t).astype(np.int64) for t in texts]
    n_position, n_lane = max(map(len, tokens)), len(texts)
    inputs = np.zeros((n_position + 1, n_lane), np.uint32)
    inputs[0] = model.config.bos
    for b, t in enumerate(tokens):
        inputs[1 : len(t) + 1, b] = t
    session = network.start(np.zeros(n_lane, bool))
    bits = np.zeros(n_lane)
    freq = np.empty((window, n_lane, model.config.vocab_size), np.uint32)
    for first in range(0, n_position, window):
        n = min(window, n_position - first)
        session.run(inputs[first : first + n], freq=freq[:n])
        for b, t in enumerate(tokens):
            target = t[first : first + n]
            chosen = freq[np.arange(len(target)), b, target]
            total = freq[: len(target), b].sum(axis=1, dtype=np.uint64)
            bits[b] -= np.log2(chosen / total).sum()
    return bits.tolist()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("export", type=Path)
    parser.add_argument("--nbytes", type=int, default=16_384)
    parser.add_argument("--levels", type=int)
    parser.add_argument("--step", type=float, default=0.0)
    parser.add_argument("--table-step", type=float, default=0.0)
    options = parser.parse_args()
    vocabulary = Vocabulary.load()
    net, _ = load_export(options.export, vocabulary)
    rounding = net.rounding
    if options.levels or options.step:
        rounding = WeightRounding(options.levels or 63, options.step, options.table_step)
    dev = corpora_dir() / "dev"
    kinds = {stem: kind for kind, stems in KINDS.items() for stem in stems.split()}
    paths = [path for path in sorted(dev.iterdir()) if path.name.split(".")[0] in kinds]
    texts = [path.read_bytes()[: options.nbytes] for path in paths]
    net.quantise(True, WeightRounding())
    in_float = bits_of(net, vocabulary, texts)
    net.quantise(True, rounding)
    rounded = bits_of(net, vocabulary, texts)
    integer = integer_bits(NativeNetwork(integer_model(net, vocabulary)), texts)
    sums: dict[str, np.ndarray] = {}
    for path, text, *bits in zip(paths, texts, in_float, rounded, integer, strict=True):
        for kind in (kinds[path.name.split(".")[0]], "total"):
            sums[kind] = sums.get(kind, np.zeros(4)) + np.array([len(text), *bits])
    names = ("bytes", "float", "rounded", "integer", "rounded", "integer")
    print(" " * 12 + "".join(f"{name:>10s}" for name in names))
    for kind, (nbytes, *bits) in sums.items():
        a, b, c = (x / nbytes for x in bits)
        figures = f"{a:10.4f}{b:10.4f}{c:10.4f}{b / a - 1:+10.3%}{c / a - 1:+10.3%}"
        print(f"{kind:12s}{int(nbytes):10,}{figures}")


if __name__ == "__main__":
    main()
