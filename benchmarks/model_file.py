"""What the weights of a model take in its file, beside other ways to store them, and how long it loads.

    python benchmarks/model_file.py MODEL.lmm|EXPORT [--step 0.35] [--threads N] [--rounds 9] [--out FILE]

For each tensor: bits a weight in the file (states, words, classes and tables); its order-0 entropy; an
adaptive arithmetic model conditioned on neighbouring weights, simulated; xz -9e and zstd -19 of its bytes. An
EXPORT is a folder of weights that training leaves; it becomes an integer model by its own rounding or, with
--step, each row of its matrices is rounded in steps of that share of its root mean square, and no load time
is measured.

The adaptive model's context is one of 32 classes of a scale that a linear model, fitted to the tensor for
free, predicts from what is decoded before: means of |w| of the column (all rows above, and the last 24 or
so), of the row so far, of the two weights to the left and the two above. Symbols are coded by their counts in
the context, which begin at the tensor's own frequencies, for free as well: no such model does better in
practice.
"""

from __future__ import annotations

import argparse
import lzma
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lmcodec.lm import container, sections, weight_coding
from lmcodec.lm.recurrent import file as recurrent_file
from lmcodec.lm.recurrent.model import IntegerModel
from lmcodec.lm.vocab import Vocabulary

_lgamma = np.vectorize(math.lgamma, otypes=[float])


def order0(w: np.ndarray) -> float:
    """Bits of a tensor under its own frequencies."""
    count = np.unique(w, return_counts=True)[1]
    return float(-(count * np.log2(count / w.size)).sum())


def adaptive(w: np.ndarray) -> float:
    """Bits of an (N, K) tensor under the adaptive model."""
    n, k = w.shape
    a = np.abs(w).astype(np.float64)
    mean = a.mean()
    if not mean:
        return 0.0
    column = (np.cumsum(a, axis=0) - a + 4 * mean) / (np.arange(n)[:, None] + 4)
    row = (np.cumsum(a, axis=1) - a + 4 * mean) / (np.arange(k) + 4)
    recent, average = np.empty_like(a), np.full(k, mean)
    for i in range(n):
        recent[i] = average
        average = average + (a[i] - average) / 24
    padded = np.pad(a, ((2, 0), (2, 0)), constant_values=mean)
    left, above = padded[2:, 1:-1] + padded[2:, :-2], padded[1:-1, 2:] + padded[:-2, 2:]
    features = [column, row, recent, left / 2, above / 2]
    x = np.stack(
        [f.ravel() / mean for f in features] + [(column * row).ravel() / mean**2, np.ones(a.size)], 1
    )
    sample = np.random.default_rng(0).permutation(a.size)[:200_000]
    fit = np.linalg.lstsq(x[sample], a.ravel()[sample] / mean, rcond=None)[0]
    scale = np.log2(np.maximum(x @ fit, 0.02))
    low, high = np.percentile(scale, [0.2, 99.8])
    context = np.clip((scale - low) / max(high - low, 1e-6) * 32, 0, 31).astype(np.int64)
    count = np.bincount(context * 128 + w.ravel() + 64, minlength=32 * 128).reshape(32, 128)
    # Counts that begin at `prior` give the same bits in any order (Dirichlet-multinomial).
    total = count.sum(axis=0)
    prior = np.where(total > 0, 0.4 * np.count_nonzero(total) * total / total.sum(), 1.0)
    each = np.where(total > 0, _lgamma(count + prior) - _lgamma(prior), 0).sum(axis=1)
    all_of = prior[total > 0].sum()
    nats = _lgamma(count.sum(axis=1) + all_of) - math.lgamma(all_of) - each
    return float(nats.sum()) / math.log(2)


def in_file(w: np.ndarray) -> float:
    """Bits of a tensor alone in a file."""
    coded = weight_coding.encode_weights([w])
    side = sections.compress(weight_coding.pack_tables(coded))
    return 8 * (len(coded.data) + len(side))


def xz(w: np.ndarray) -> float:
    """Bits of xz -9e."""
    return 8 * len(lzma.compress(w.tobytes(), preset=9 | lzma.PRESET_EXTREME))


def zstd(w: np.ndarray) -> float:
    """Bits of zstd -19."""
    run = subprocess.run(["zstd", "-19", "-c", "-q"], input=w.tobytes(), check=True, capture_output=True)
    return 8 * len(run.stdout)


def rounded(folder: Path, step: float) -> dict[str, np.ndarray]:
    """The matrices of an export, rounded row by row."""
    from lmcodec.train import checkpoint

    tensors = {}
    for name, tensor in checkpoint.load(folder)[0].items():
        w = tensor.float().numpy()
        if w.ndim == 2:
            rms = np.sqrt((w**2).mean(axis=1, keepdims=True))
            tensors[name] = np.clip(np.rint(w / np.maximum(step * rms, 1e-30)), -63, 63).astype(np.int8)
    return tensors


def model_of(path: Path) -> IntegerModel:
    """The model in a file, or of an export."""
    if path.is_file():
        return recurrent_file.load(path).model
    from lmcodec.train.export import integer_model
    from lmcodec.train.exports import load_export

    vocabulary = Vocabulary.load()
    return integer_model(load_export(path, vocabulary)[0], vocabulary)


def fastest(rounds: int, call: Callable[[], object]) -> float:
    """Milliseconds of the fastest of some calls."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times) * 1e3


def print_sizes(tensors: dict[str, np.ndarray]) -> None:
    columns: dict[str, Callable[[np.ndarray], float]] = {
        "file": in_file,
        "order 0": order0,
        "adaptive": adaptive,
        "xz -9e": xz,
    }
    if shutil.which("zstd"):
        columns["zstd -19"] = zstd
    else:
        print("zstd: not found")
    print(f"{'tensor':<14}{'weights':>10}" + "".join(f"{name:>10}" for name in columns))
    total = np.zeros(len(columns))
    for name, w in tensors.items():
        nbits = np.array([measure(w) for measure in columns.values()])
        total += nbits
        print(f"{name:<14}{w.size:>10}" + "".join(f"{b / w.size:>10.4f}" for b in nbits), flush=True)
    n_weight = sum(w.size for w in tensors.values())
    print(f"{'all':<14}{n_weight:>10}" + "".join(f"{b / n_weight:>10.4f}" for b in total))
    print(f"{'bytes':<24}" + "".join(f"{int(b / 8):>10}" for b in total))


def print_load(model: IntegerModel, rounds: int, n_thread: int, out: Path | None) -> None:
    start = time.perf_counter()
    data = recurrent_file.pack(model)
    print(f"\npacked in {time.perf_counter() - start:.2f} s: {len(data)} bytes", end=", ")
    if out:
        out.write_bytes(data)
    opened = recurrent_file.open_container(container.parse(data))
    parts = opened._sections
    print(", ".join(f"{name} {size}" for name, size in opened.header.sections.items()))
    coded = weight_coding.encode_weights([linear.weight for linear in model.tensors().values()])

    def sha256() -> None:
        vars(model).pop("sha256", None)
        _ = model.sha256

    steps: dict[str, Callable[[], object]] = {
        "the whole file": lambda: recurrent_file.parse(data, n_thread=n_thread),
        "header and digest": lambda: recurrent_file.open_container(container.parse(data)),
        "vocabulary": lambda: sections.parse_vocabulary(parts["vocabulary"], model.config.vocab_size),
        "vectors": lambda: recurrent_file._parse_vectors(parts["vectors"], model.config),
        f"weights, {n_thread} threads": lambda: weight_coding.decode_weights(coded, n_thread),
        f"weights, {n_thread} threads, portable": lambda: weight_coding.decode_weights(coded, n_thread, True),
        "model id": sha256,
    }
    for name, step in steps.items():
        print(f"{name:<32}{fastest(rounds, step):8.2f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("path", type=Path, help="a model file, or the folder of an export")
    parser.add_argument("--step", type=float, help="steps of an export's rows, as a share of their rms")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="write the model's file here")
    options = parser.parse_args()
    if options.step:
        print_sizes(rounded(options.path, options.step))
        return
    model = model_of(options.path)
    print_load(model, options.rounds, options.threads, options.out)
    sys.stdout.flush()
    print_sizes({name: linear.weight for name, linear in model.tensors().items()})


if __name__ == "__main__":
    main()
