"""The entropy coding of int8 weights: FORMAT.md section 7.4. Knows no kind of model and no file.

Interleaved rANS (Duda, arXiv:1311.2540; interleaving: Giesen, arXiv:1402.3392) with static tables. What a
weight is conditioned on is the sum of a class of its row and a class of its column: the logarithms of the
scales of a rank-one fit of |w|. It is known before the first weight is decoded, so that all lanes go on side
by side, and static tables over it cost what an adaptive model over the neighbouring weights does
(benchmarks/model_file.py).

`decode_reference` is the definition; the kernel gives the same weights and refuses the same files.
`encode_reference` gives the same bytes as the kernel's encoder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np

from lmcodec.errors import Corrupt, LimitExceeded
from lmcodec.lm.container import integer

MAX_WEIGHTS = 1 << 33  # of a model of any kind; a kind may allow fewer
MAX_COLUMNS = 1 << 16  # of a tensor: |activation| <= 127 gives sums below 2^29
LANES = 32  # rANS states of a chunk; weight i belongs to lane i % 32
PRECISION = 12  # bits of a probability
SYMBOLS = 128  # symbol s stands for weight s - 64
MAX_CONTEXTS = 16  # of a tensor
MAX_CLASS = 63
CHUNK = 1 << 19  # weights of every chunk of a tensor but its last
LEAST_STATE = 1 << 16  # a state lies in [2^16, 2^32); where encoding begins and decoding ends
MAX_CODE = 96  # of a frequency

STATES_NBYTES = 4 * LANES  # of a chunk
_FITTED = 1 << 23  # weights of a tensor that its scales are fitted to: 64 MiB of floats
_STEPS = (0.125, 0.25, 0.5)  # of a class, in binary logarithms of the scale: what the encoder tries


@dataclass(frozen=True)
class CodedTensors:
    """Weights of several tensors as the file holds them.

    Attributes:
        shapes: rows, columns and contexts of each tensor.
        row_class: (sum of rows,) int8.
        column_class: (sum of columns,) int8.
        codes: (sum of contexts, 128) uint8, the frequencies' codes.
        n_word: for each tensor the number of 16-bit words of each of its chunks.
        data: (n,) uint8: of each chunk 32 states, then its words.
    """

    shapes: list[tuple[int, int, int]]
    row_class: np.ndarray
    column_class: np.ndarray
    codes: np.ndarray
    n_word: list[list[int]]
    data: np.ndarray


# --- what a file says of coded tensors ---


def pack_tables(coded: CodedTensors) -> bytes:
    """Content of a file's section `tables`: row classes, column classes, codes of frequencies."""
    return b"".join((coded.row_class.tobytes(), coded.column_class.tobytes(), coded.codes.tobytes()))


def tables_nbytes(shapes: Sequence[tuple[int, int, int]]) -> int:
    """What `pack_tables` takes for tensors of these rows, columns and contexts."""
    return sum(n + k + SYMBOLS * n_context for n, k, n_context in shapes)


def parse_tables(
    data: bytes,
    shapes: Sequence[tuple[int, int, int]],
    n_word: Sequence[list[int]],
    words: memoryview | np.ndarray,
) -> CodedTensors:
    """The coded tensors of a file.

    Args:
        data: what `pack_tables` gave, `tables_nbytes(shapes)` bytes.
        shapes: rows, columns and contexts of each tensor.
        n_word: for each tensor the number of 16-bit words of each of its chunks.
        words: content of the section `weights`; it is not copied.
    """
    side = np.frombuffer(data, np.uint8)
    n_row, n_column, n_context = (sum(column) for column in zip(*shapes, strict=True))
    return CodedTensors(
        shapes=list(shapes),
        row_class=side[:n_row].view(np.int8),
        column_class=side[n_row : n_row + n_column].view(np.int8),
        codes=side[n_row + n_column :].reshape(n_context, SYMBOLS),
        n_word=list(n_word),
        data=np.frombuffer(words, np.uint8),
    )


def check_shapes(shapes: Sequence[tuple[int, int]]) -> int:
    """The number of weights of tensors of these rows and columns, within what any kind may have.

    Raises:
        Corrupt: a tensor is empty or has too many columns, or there are too many weights.
    """
    n_weight = 0
    for n, k in shapes:
        if n < 1 or not 1 <= k <= MAX_COLUMNS:
            raise Corrupt(f"header: tensor of {n} x {k} weights, expected 1 to {MAX_COLUMNS} columns")
        n_weight += n * k
    if n_weight > MAX_WEIGHTS:
        raise Corrupt(f"header declares {n_weight} weights, at most {MAX_WEIGHTS}")
    return n_weight


def parse_words(name: str, value: object, n_weight: int) -> list[int]:
    """The member `words` of a tensor in a header.

    Raises:
        Corrupt: it is not as many numbers as the tensor has chunks, or one is too large.
    """
    n_chunk = -(-n_weight // CHUNK)
    if not isinstance(value, list) or len(value) != n_chunk:
        raise Corrupt(f"header: {name}: the words are not a list of {n_chunk}")
    # A weight takes at most one word.
    return [integer(f"{name}: words", words, 0, CHUNK) for words in value]


def coded_nbytes(n_word: Sequence[list[int]]) -> int:
    """Bytes of states and words, of all chunks of all tensors."""
    return sum(STATES_NBYTES + 2 * words for tensor in n_word for words in tensor)


# --- coding ---


def encode_weights(weights: Sequence[np.ndarray], n_thread: int = 2) -> CodedTensors:
    """Code (N, K) int8 tensors, |w| <= 63, by the kernel; by NumPy where there is no kernel.

    The choice of classes and tables is the encoder's own; any that obeys FORMAT.md section 7.4 decodes.

    Args:
        weights: the tensors.
        n_thread: threads that count and encode, 1 to 64.
    """
    try:
        from lmcodec import _kernel
    except ImportError:  # a machine that only trains, on which the package is a folder
        return encode_reference(weights)
    weights = [np.ascontiguousarray(w) for w in weights]
    coded = _coded(weights, [_choose(w, n_thread) for w in weights])
    freq = frequencies(coded.codes)
    parts: list[bytes] = []
    n_word: list[list[int]] = []
    row_at, column_at, context_at = 0, 0, 0
    for w, (n, k, n_context) in zip(weights, coded.shapes, strict=True):
        chunks = _kernel.encode_weights(
            w,
            coded.row_class[row_at : row_at + n],
            coded.column_class[column_at : column_at + k],
            freq[context_at : context_at + n_context],
            n_thread,
        )
        parts += chunks
        n_word.append([(len(chunk) - STATES_NBYTES) // 2 for chunk in chunks])
        row_at, column_at, context_at = row_at + n, column_at + k, context_at + n_context
    return replace(coded, n_word=n_word, data=np.frombuffer(b"".join(parts), np.uint8))


def _coded(
    weights: Sequence[np.ndarray], choices: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> CodedTensors:
    """Classes and tables of the tensors, without words."""
    return CodedTensors(
        shapes=[(*w.shape, len(codes)) for w, (_, _, codes) in zip(weights, choices, strict=True)],
        row_class=np.concatenate([row for row, _, _ in choices]),
        column_class=np.concatenate([column for _, column, _ in choices]),
        codes=np.concatenate([codes for _, _, codes in choices]),
        n_word=[],
        data=np.empty(0, np.uint8),
    )


def encode_reference(weights: Sequence[np.ndarray]) -> CodedTensors:
    """What `encode_weights` gives, in NumPy: all chunks side by side."""
    coded = _coded(weights, [_choose(w) for w in weights])
    freq = frequencies(coded.codes)
    start = np.cumsum(freq, axis=1, dtype=np.uint32) - freq
    chunks = list(_chunks(coded))
    index, active = _in_lanes([contexts for _, contexts in chunks])  # (T, C, 32)
    flat = [w.ravel() for w in weights]
    symbols, _ = _in_lanes(
        [flat[t][at : at + len(contexts)].astype(np.int64) + 64 for (t, at), contexts in chunks]
    )
    index *= SYMBOLS
    index += symbols
    f_of, start_of = freq.ravel().astype(np.uint64), start.ravel().astype(np.uint64)
    state = np.full(index.shape[1:], LEAST_STATE, np.uint64)  # (C, 32)
    words, emitted = np.empty(index.shape, np.uint16), np.zeros(index.shape, bool)
    for t in reversed(range(len(index))):
        f = np.where(active[t], f_of[index[t]], 1 << PRECISION)  # a certain symbol changes nothing
        s = np.where(active[t], start_of[index[t]], 0)
        # With x < f 2^20 the state after coding stays below 2^32.
        full = state >= f << 20
        words[t], emitted[t] = state.astype(np.uint16), full
        state = np.where(full, state >> 16, state)
        quotient = state // f
        state = (quotient << PRECISION) + (state - quotient * f) + s
    parts: list[np.ndarray] = []
    n_word: list[list[int]] = [[] for _ in weights]
    for c, ((t, _), _) in enumerate(chunks):
        # In the order of decoding: step by step, within a step lane by lane.
        own = words[:, c][emitted[:, c]].astype("<u2")
        parts += [state[c].astype("<u4").view(np.uint8), own.view(np.uint8)]
        n_word[t].append(len(own))
    return replace(coded, n_word=n_word, data=np.concatenate(parts))


# Where LMCODEC_ISA asks for one of these, weights take no AVX-512 either.
_WITHOUT_AVX512 = ("avx2", "scalar")


def decode_weights(coded: CodedTensors, n_thread: int = 1, portable: bool | None = None) -> list[np.ndarray]:
    """The (N, K) int8 tensors that were coded, by the kernel; by the definition where there is no kernel.

    Args:
        coded: the tensors; nothing of it is trusted.
        n_thread: threads that decode, 1 to 64.
        portable: no instructions but those that every machine has; None: what LMCODEC_ISA asks for.

    Raises:
        Corrupt: the coded form breaks a rule.
    """
    try:
        from lmcodec import _kernel
    except ImportError:  # a machine that only trains, on which the package is a folder
        return decode_reference(coded)
    if portable is None:
        portable = os.environ.get("LMCODEC_ISA") in _WITHOUT_AVX512
    n_weight = sum(n * k for n, k, _ in coded.shapes)
    try:
        out = np.empty(n_weight, np.int8)
    except MemoryError:
        raise LimitExceeded(f"{n_weight} weights take more memory than there is") from None
    wrong = _kernel.decode_weights(
        coded.data,
        [words for tensor in coded.n_word for words in tensor],
        coded.shapes,
        coded.row_class,
        coded.column_class,
        frequencies(coded.codes),
        out,
        n_thread,
        portable,
    )
    if wrong:
        raise Corrupt(f"coded weights: wrong {wrong}")
    return _split(out, coded)


def decode_reference(coded: CodedTensors) -> list[np.ndarray]:
    """The definition of `decode_weights`: all chunks side by side, one weight of each of their lanes a step.

    Raises:
        Corrupt: the coded form breaks a rule.
    """
    classes = np.concatenate([coded.row_class, coded.column_class]).astype(np.int64)
    if np.abs(classes).max() > MAX_CLASS:
        raise Corrupt("coded weights: wrong class")
    sizes = (len(coded.row_class), len(coded.column_class), len(coded.codes))
    if tuple(sum(column) for column in zip(*coded.shapes, strict=True)) != sizes:
        raise Corrupt("coded weights: wrong number of classes or tables")
    freq = frequencies(coded.codes)
    symbol_of = np.concatenate([np.repeat(np.arange(SYMBOLS), row) for row in freq])  # (contexts * 4096,)
    f_of = freq.ravel().astype(np.int64)
    start_of = (np.cumsum(freq, axis=1, dtype=np.int64) - freq).ravel()
    chunks = list(_chunks(coded))
    context, active = _in_lanes([contexts for _, contexts in chunks])  # (T, C, 32)
    n_word = np.array([words for tensor in coded.n_word for words in tensor])
    first = np.cumsum(STATES_NBYTES + 2 * n_word) - 2 * n_word  # byte of each chunk's first word
    if len(n_word) != len(chunks) or first[-1] + 2 * n_word[-1] != len(coded.data):
        raise Corrupt("coded weights: wrong size of the chunks")
    state = np.stack([coded.data[at - STATES_NBYTES : at].view("<u4") for at in first]).astype(np.int64)
    if state.min() < LEAST_STATE:
        raise Corrupt("coded weights: wrong words")
    read = np.zeros(len(chunks), np.int64)  # words, of each chunk
    decoded = np.empty(context.shape, np.int8)
    for t in range(len(context)):
        slot = state & (1 << PRECISION) - 1
        symbol = symbol_of[context[t] << PRECISION | slot]
        index = context[t] * SYMBOLS + symbol
        after = f_of[index] * (state >> PRECISION) + slot - start_of[index]
        state = np.where(active[t], after, state)
        few = state < LEAST_STATE
        order = np.cumsum(few, axis=1)
        if (read + order[:, -1] > n_word).any():
            raise Corrupt("coded weights: wrong words")
        at = (first[:, None] + 2 * (read[:, None] + order - 1))[few]
        state[few] = state[few] << 16 | coded.data[at] | coded.data[at + 1].astype(np.int64) << 8
        read += order[:, -1]
        decoded[t] = symbol - 64
    if (read != n_word).any() or (state != LEAST_STATE).any():
        raise Corrupt("coded weights: wrong words")
    out = [decoded[:, c].ravel()[: len(contexts)] for c, (_, contexts) in enumerate(chunks)]
    return _split(np.concatenate(out), coded)


def frequencies(codes: np.ndarray) -> np.ndarray:
    """Frequencies of codes: each a number with three bits behind its leading one, scaled to a sum of 2^12.

    Args:
        codes: (C, 128) uint8: 0 for a symbol that does not occur, else 1 + e for (8 + e % 8) 2^(e // 8).

    Returns:
        (C, 128) uint16, rows sum to 2^12, >= 1 for symbols that occur.

    Raises:
        Corrupt: a code is above 96, symbol 0 occurs, or a row is empty or too flat.
    """
    if codes.max(initial=0) > MAX_CODE or codes[:, 0].any():
        raise Corrupt("coded weights: a frequency's code is out of range")
    e = codes.astype(np.int64) - 1
    mantissa = np.where(codes > 0, (8 + (e & 7)) << np.maximum(e >> 3, 0), 0)
    total = mantissa.sum(axis=1, keepdims=True)  # < 128 * 15 * 2^11 < 2^22
    if not total.all():
        raise Corrupt("coded weights: a table without symbols")
    freq = np.where(codes > 0, np.maximum(1, ((mantissa << PRECISION + 1) + total) // (2 * total)), 0)
    # What rounding left over goes to the likeliest symbol, the first of equals.
    likeliest = np.argmax(freq, axis=1)
    rows = np.arange(len(freq))
    freq[rows, likeliest] += (1 << PRECISION) - freq.sum(axis=1)
    if freq[rows, likeliest].min() < 1:
        raise Corrupt("coded weights: a table is too flat")
    return freq.astype(np.uint16)


def _codes(counts: np.ndarray) -> np.ndarray:
    """(C, 128) uint8 codes of frequencies nearest to (C, 128) counts; one symbol for a row without any."""
    counts = counts.copy()
    counts[counts.sum(axis=1) == 0, 64] = 1
    share = counts * 2.0**15 / counts.sum(axis=1, keepdims=True)
    e = np.arange(MAX_CODE)
    values = (8 + (e & 7)) << (e >> 3)  # 8 = 2^-12 of the sum, to 30720
    nearest = np.searchsorted((values[1:] + values[:-1]) / 2, share)
    return np.where(counts > 0, nearest + 1, 0).astype(np.uint8)


def _context(row: np.ndarray, column: np.ndarray, n_context: int) -> np.ndarray:
    """(N, K) int64: the sum of the classes, held within 0 to n_context - 1."""
    return np.clip(row[:, None].astype(np.int64) + column, 0, n_context - 1)


def _count(w: np.ndarray, row: np.ndarray, column: np.ndarray, n_context: int, n_thread: int) -> np.ndarray:
    """(n_context, 128) int64: how often each symbol occurs in each context."""
    if n_thread:
        from lmcodec import _kernel

        counts = np.empty((n_context, SYMBOLS), np.uint64)
        _kernel.count_weights(w, row, column, counts, n_thread)
        return counts.astype(np.int64)
    index = _context(row, column, n_context)
    index *= SYMBOLS
    index += w
    index += 64
    return np.bincount(index.ravel(), minlength=n_context * SYMBOLS).reshape(n_context, SYMBOLS)


def _fit(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales of rows and columns whose products are nearest to |w|; of a large tensor, from some rows."""
    step = -(-w.size // _FITTED)
    magnitude = _magnitude(w[::step])
    rows = np.ones(len(magnitude))
    for _ in range(3):
        columns = (magnitude / rows[:, None]).mean(axis=0)
        rows = (magnitude / columns).mean(axis=1)
    if step > 1:
        n = max(1, _FITTED // w.shape[1])
        rows = np.concatenate(
            [(_magnitude(w[at : at + n]) / columns).mean(axis=1) for at in range(0, len(w), n)]
        )
    return rows, columns


def _magnitude(w: np.ndarray) -> np.ndarray:
    return np.abs(w).astype(np.float64) + 1e-3


def _choose(w: np.ndarray, n_thread: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row classes, column classes and frequencies' codes that make (N, K) weights small.

    Args:
        w: |w| <= 63.
        n_thread: threads of the kernel that count; 0: without the kernel.
    """
    rows, columns = _fit(w)
    row_scale, column_scale = np.log2(rows), np.log2(columns)
    row_scale -= np.median(row_scale)
    column_scale -= np.median(column_scale)
    best, best_nbits = None, np.inf
    trials = [(0, 0, 1.0), *((r, c, s) for r, c in ((0, 1), (1, 0), (1, 1)) for s in _STEPS)]
    for row_share, column_share, step in trials:
        row = np.clip(np.rint(row_scale * (row_share / step)), -31, 31).astype(np.int64)
        column = np.clip(np.rint(column_scale * (column_share / step)), -31, 31).astype(np.int64)
        # The contexts that most weights fall into; what lies outside joins the outermost.
        row_count, column_count = np.bincount(row + 31, minlength=63), np.bincount(column + 31, minlength=63)
        mass = np.convolve(row_count, column_count)  # of the sum of the classes plus 62
        n_context = min(MAX_CONTEXTS, int(np.ptp(row) + np.ptp(column)) + 1)
        low = int(np.argmax(np.convolve(mass, np.ones(n_context), "valid"))) - 62
        row_class = row.astype(np.int8)
        column_class = np.clip(column - low, -MAX_CLASS, MAX_CLASS).astype(np.int8)
        counts = _count(w, row_class, column_class, n_context, n_thread)
        codes = _codes(counts)
        nbits = -(counts * np.log2(np.maximum(frequencies(codes), 1) / (1 << PRECISION))).sum()
        nbits += _entropy(row_class) + _entropy(column_class) + 4.0 * np.count_nonzero(codes)
        if nbits < best_nbits:
            best, best_nbits = (row_class, column_class, codes), nbits
    assert best is not None
    return best


def _entropy(values: np.ndarray) -> float:
    """Bits of (n,) small integers under their own frequencies, and of these."""
    count = np.unique(values, return_counts=True)[1]
    return float(-(count * np.log2(count / count.sum())).sum()) + 8.0 * len(count)


def _chunks(coded: CodedTensors) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
    """Of each chunk its tensor and first weight, and the (n,) rows of the table of frequencies it uses."""
    row_at = [0, *accumulate(n for n, _, _ in coded.shapes)]
    column_at = [0, *accumulate(k for _, k, _ in coded.shapes)]
    context_at = [0, *accumulate(c for _, _, c in coded.shapes)]
    for t, (n, k, n_context) in enumerate(coded.shapes):
        row = coded.row_class[row_at[t] : row_at[t] + n]
        column = coded.column_class[column_at[t] : column_at[t] + k]
        contexts = (_context(row, column, n_context) + context_at[t]).ravel()
        for at in range(0, n * k, CHUNK):
            yield (t, at), contexts[at : at + CHUNK]


def _in_lanes(parts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """C chunks of up to T * 32 values as (T, C, 32) int64, and which of these are values."""
    n_step = max(-(-len(part) // LANES) for part in parts)
    values = np.zeros((n_step, len(parts), LANES), np.int64)
    active = np.zeros(values.shape, bool)
    for c, part in enumerate(parts):
        full = len(part) // LANES
        values[:full, c] = part[: full * LANES].reshape(full, LANES)
        active[:full, c] = True
        if rest := len(part) % LANES:
            values[full, c, :rest] = part[full * LANES :]
            active[full, c, :rest] = True
    return values, active


def _split(flat: np.ndarray, coded: CodedTensors) -> list[np.ndarray]:
    at = [0, *accumulate(n * k for n, k, _ in coded.shapes)]
    return [flat[at[t] : at[t + 1]].reshape(n, k) for t, (n, k, _) in enumerate(coded.shapes)]
