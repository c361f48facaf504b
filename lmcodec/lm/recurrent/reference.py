"""The definition of the integer model, in NumPy and integers alone: FORMAT.md section 6.

Every other executor gives these integers, for any batch, thread count and order of work. B streams run side
by side and do not see one another. The code favours clearness: products run at a hundredth of the kernel's
speed.

Bounds (tested at the extremes in tests/test_reference.py). With |activation| <= 127, |w| <= 63, K <= 2096 a
product's sum is below 2^24; with a bias below 2^25; times a multiplier of 16 bits below 2^41, shifted right
by 12 at least below 2^29. A table's row times its multiplier is below 2^22. |x| < 2^23, so its squares sum to
less than 2^58. A state h obeys |h'| <= a |h| + s |v| 2^12, rounded, so it stays below the largest fixed
point of the tables, 1.19 * 2^25 (or decays to it from a start state of at most 2^26); a h < 2^42.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from lmcodec.lm.decisions import bit_length, frequencies
from lmcodec.lm.recurrent import tables
from lmcodec.lm.recurrent.model import IntegerModel, Linear

ACTIVATION_MAX = 127
STREAM_MAX = (1 << 23) - 1  # of the residual stream, steps of 2^-12
NORM_EPS = 17  # of a mean square in steps of 2^-24: 1e-6


@dataclass
class State:
    """Recurrent states of B streams.

    Attributes:
        h: (L, B, R) int32, steps of 2^-17.
    """

    h: np.ndarray

    def copy(self) -> State:
        """A state of its own."""
        return State(self.h.copy())


def start(model: IntegerModel, cut: np.ndarray) -> State:
    """The states before the first token of B streams.

    Args:
        model: whose start states to take.
        cut: (B,) bool, whether a stream begins in the middle of a document. Its first token is then
            `config.mid`, otherwise `config.bos`.
    """
    return State(np.ascontiguousarray(model.start[cut.astype(np.intp)].transpose(1, 0, 2)))


def step(model: IntegerModel, tokens: np.ndarray, state: State) -> np.ndarray:
    """Logits of the next tokens.

    Args:
        model: the network.
        tokens: (B,) the streams' tokens, each < V + 2.
        state: of B streams; moves on by one token.

    Returns:
        (B, V) int32 logits, steps of 2^-8 of a binary logarithm, |logit| < 2^29.
    """
    return sequence(model, tokens[None], state)[0]


def sequence(model: IntegerModel, tokens: np.ndarray, state: State) -> np.ndarray:
    """Logits at T positions of B streams: what T calls of `step` give.

    Args:
        model: the network.
        tokens: (T, B) tokens, each < V + 2.
        state: of B streams; moves on by T tokens.

    Returns:
        (T, B, V) int32 logits.
    """
    n_channel = model.config.recurrent
    x = _requantise(model.embed.weight[tokens].astype(np.int64), model.embed, tokens)  # (T, B, D)
    for i, layer in enumerate(model.layers):
        p = product(normalise(x), layer.into)  # (T, B, 3R)
        z, v, o = (_clip(p[..., k * n_channel : (k + 1) * n_channel]) for k in range(3))
        h = recur(z, v, state.h[i])  # (T, B, R)
        state.h[i] = h[-1]
        x = add(x, product(gate(h, o), layer.out))
        if layer.up is not None and layer.down is not None:
            m = np.clip(product(normalise(x), layer.up), 0, ACTIVATION_MAX)
            x = add(x, product(tables.relu2()[m], layer.down))
    return product(normalise(x), model.head)


def product(u: np.ndarray, linear: Linear) -> np.ndarray:
    """(..., N) int32 = requantised sums of (..., K) activations, |u| <= 127, with (N, K) weights."""
    # Exact in int32: sums stay below 2^24.
    sums = np.matmul(u.astype(np.int32), linear.weight.T.astype(np.int32)).astype(np.int64)
    if linear.bias is not None:
        sums += linear.bias
    return _requantise(sums, linear)


def _requantise(sums: np.ndarray, linear: Linear, rows: np.ndarray | None = None) -> np.ndarray:
    """(..., N) int64 sums, requantised to int32; `rows` names the row of a table that each vector is."""
    multiplier = linear.multiplier.astype(np.int64)
    scaled = sums * (multiplier if rows is None else multiplier[rows][..., None])
    return _shift(scaled, linear.shift).astype(np.int32)


def _shift(value: np.ndarray, shift: int) -> np.ndarray:
    """value / 2^shift to the nearest, halves up."""
    return value if shift == 0 else (value + (1 << (shift - 1))) >> shift


def _clip(value: np.ndarray) -> np.ndarray:
    return np.clip(value, -ACTIVATION_MAX, ACTIVATION_MAX)


def add(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Residual stream x plus y, int32, held within +-(2^23 - 1). |x + y| < 2^30."""
    return np.clip(x + y, -STREAM_MAX, STREAM_MAX)


def normalise(x: np.ndarray) -> np.ndarray:
    """RMS norm of (..., D) int32, |x| < 2^23, to steps of 2^-4: (..., D) int32, |n| <= 127.

    n = 16 x sqrt(D / S) with S the sum of squares: S is brought to 31 or 32 bits by an even shift e, its root
    looked up by 14 bits. 16 sqrt(D) 64 is below 2^16, the factor below 2^25, times x below 2^48.
    """
    dim = x.shape[-1]
    wide = x.astype(np.int64)
    s = np.sum(wide * wide, axis=-1) + NORM_EPS * dim  # 2^8 < S < 2^58
    e = (bit_length(s) - 31) & ~1  # even; S / 2^e has 31 or 32 bits
    m = np.where(e >= 0, s >> np.maximum(e, 0), s << np.maximum(-e, 0))
    root = tables.rsqrt().astype(np.int64)[(m >> 18) - 4096]  # 2^31 / sqrt(m)
    factor = (root * tables.norm_scale(dim) + 128) >> 8
    shift = (29 + e // 2)[..., None]  # 18 to 42
    return _clip((wide * factor[..., None] + (np.int64(1) << (shift - 1))) >> shift).astype(np.int32)


def recur(z: np.ndarray, v: np.ndarray, h: np.ndarray) -> np.ndarray:
    """The recurrence over T steps, rounded at every one.

    Args:
        z: (T, B, R) gate arguments, steps of 2^-4, |z| <= 127.
        v: (T, B, R) inputs, steps of 2^-5, |v| <= 127.
        h: (B, R) int32 state before, steps of 2^-17.

    Returns:
        (T, B, R) int32 states.
    """
    a = tables.decay().astype(np.int64)[z + 127]
    new = tables.input_scale().astype(np.int64)[z + 127] * v << 12  # steps of 2^-33
    states = np.empty(z.shape, np.int32)
    for t in range(len(z)):
        h = ((a[t] * h + new[t] + (1 << 15)) >> 16).astype(np.int32)
        states[t] = h
    return states


def gate(h: np.ndarray, o: np.ndarray) -> np.ndarray:
    """Output of the recurrence, (..., R) int32 in steps of 2^-4: states times the sigmoid of o / 16."""
    return _clip(_shift(h * tables.decay().astype(np.int64)[o + 127], 29)).astype(np.int32)


KNOWN_POSITIONS, KNOWN_STREAMS = 8, 2


def known_tokens(model: IntegerModel) -> np.ndarray:
    """(T, B) int32 tokens of the self-test: `bos` and `mid`, then residues of multiples of two primes."""
    t, b = np.mgrid[:KNOWN_POSITIONS, :KNOWN_STREAMS]
    tokens = (t * 40_503 + b * 30_011) % model.config.vocab_size
    tokens[0] = model.config.bos, model.config.mid
    return tokens.astype(np.int32)


def known_answer(freq: np.ndarray, state: State) -> str:
    """What the self-test compares: SHA-256, in hexadecimal, of what `known_tokens` give.

    Args:
        freq: (T, B, V) uint32 frequencies, the first stream begun as a document, the second in the middle of
            one.
        state: after the last of them.
    """
    return hashlib.sha256(freq.astype("<u4").tobytes() + state.h.astype("<i4").tobytes()).hexdigest()


def compute_known_answer(model: IntegerModel) -> str:
    """`known_answer` by this definition."""
    state = start(model, np.array([False, True]))
    freq = frequencies(sequence(model, known_tokens(model), state))
    return known_answer(freq, state)
