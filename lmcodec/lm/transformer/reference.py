"""The definition of the transformer of FORMAT.md section 9 ("arithmetic 2"), in NumPy.

Every other executor gives these integers, for any batch, thread count and order of work. Elementwise work is
binary32, every operation rounded to the nearest, ties to even, in the order written here; nothing is fused.
Sums of more than two terms are integer sums, but for the sum of squares and the rotation, whose order is
stated. NumPy's elementwise operations on float32 arrays are IEEE 754's; `np.sum` and `np.matmul` of floats
are used for integers only, where every partial sum is exact.

Bounds. `hold` leaves every value 0 or 2^-60 to 2^40 in size. A rotation over n <= 2^16 elements gives at
most 2^56, so scales of activations lie in [2^-47, 2^50]. A product's sum is below 127 * 63 * 2^16 < 2^29;
times a scale of at most 2^40 and one of 2^50 below 2^119. Squares are at most 2^80, their sum 2^96, a mean
with eps at least 2^-40. A score is at most 2^24 * 2^34 * 2^34 * 2^10. No NaN and no infinity can arise. Where
a product is subnormal it is added to something that absorbs it or made 0 by `hold`, or multiplied and rounded
to the integer 0, so that it does not matter whether a processor keeps subnormal numbers. What further options
compute is bounded in the same way where it is written.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from lmcodec.lm import tables
from lmcodec.lm.decisions import frequencies
from lmcodec.lm.transformer.model import LARGEST, SCALE_MIN, SMALLEST, Layer, Linear, TransformerModel
from lmcodec.lm.transformer.shape import MAX_POSITION

ACTIVATION_MAX = 127
LOGIT_MAX = 1 << 22
SCORE_MAX = 1 << 23
LOW_BITS = 10  # of a position: angles are the sum of one from a table of 2^10 and one from a table of 2^12
_PROBABILITY = 32_767
_EXACT_FAN_IN = 2048  # 127 * 63 * 2048 < 2^24: sums are exact in float32

f32 = np.float32
ZERO, ONE, HALF_BITS = f32(0), f32(1), f32(2.0**15)
# Binary logarithm of e, and ln(2)^k / k!, to the nearest binary32.
LOG2_E = f32(1.4426950408889634)
EXP2_TERMS = tuple(
    f32(term)
    for term in (
        1.0,
        0.6931471805599453,
        0.2402265069591007,
        0.05550410866482158,
        0.009618129107628477,
        0.0013333558146428443,
        0.00015403530393381608,
    )
)
EXP_MAX = f32(80)
# 2 sqrt(2 / pi) and the cubic term of the approximation of GELU by tanh.
GELU_TANH = f32(1.5957691216057308), f32(0.044715)
# sqrt(1/2); Abramowitz and Stegun, 7.1.26: erfc(u) = (a1 t + ... + a5 t^5) e^-u^2, t = 1 / (1 + p u), within
# 1.5e-7; halved.
GELU_ROOT, GELU_MAX = f32(0.7071067811865476), f32(8)
GELU_P = f32(0.3275911)
GELU_TERMS = tuple(
    f32(term) for term in (0.127414796, -0.142248368, 0.7107068705, -0.7265760135, 0.5307027145)
)


@dataclass
class State:
    """Keys and values of B streams.

    Attributes:
        n: (B,) int64, tokens that each stream has taken: the next one's position.
        position: for each stream (N,) int64, ascending: the positions that are held.
        key: for each layer and stream (N, G, E) int8, rotated by their positions.
        key_scale: for each layer and stream (N, G) float32.
        value: for each layer and stream (N, G, E) int8.
        value_scale: for each layer and stream (N, G) float32.
        recent: for each stream its last tokens, at most `config.half`.
    """

    n: np.ndarray
    position: list[np.ndarray]
    key: list[list[np.ndarray]]
    key_scale: list[list[np.ndarray]]
    value: list[list[np.ndarray]]
    value_scale: list[list[np.ndarray]]
    recent: list[np.ndarray]


def start(model: TransformerModel, n_stream: int) -> State:
    """Before the first token of B streams, which is `config.start[0]` or, within a document, `start[1]`."""
    none = [np.zeros(0, np.int64)]
    state = State(np.zeros(n_stream, np.int64), none * n_stream, [], [], [], [], none * n_stream)
    head = model.config.n_kv_head, model.config.head_dim
    for _ in range(model.config.n_layer):
        for codes, scales in ((state.key, state.key_scale), (state.value, state.value_scale)):
            codes.append([np.zeros((0, *head), np.int8) for _ in range(n_stream)])
            scales.append([np.zeros((0, head[0]), f32) for _ in range(n_stream)])
    return state


def begin(state: State, stream: int) -> None:
    """Stream `stream` begins anew."""
    state.n[stream] = 0
    state.position[stream] = state.position[stream][:0]
    state.recent[stream] = state.recent[stream][:0]
    for held in (state.key, state.key_scale, state.value, state.value_scale):
        for layer in held:
            layer[stream] = layer[stream][:0]


def step(model: TransformerModel, tokens: np.ndarray, state: State) -> np.ndarray:
    """Logits of the next tokens.

    Args:
        model: the network.
        tokens: (B,) the streams' tokens, each < V + 2.
        state: of B streams; moves on by one token.

    Returns:
        (B, V) int32 logits, steps of 2^-8 of a binary logarithm, |logit| <= 2^22.
    """
    return sequence(model, tokens[None], state)[0]


def sequence(model: TransformerModel, tokens: np.ndarray, state: State) -> np.ndarray:
    """Logits at T positions of B streams: what T calls of `step` give.

    Args:
        model: the network.
        tokens: (T, B) tokens, each < V + 2.
        state: of B streams; moves on by T tokens.

    Returns:
        (T, B, V) int32 logits.

    Raises:
        ValueError: a stream would pass the largest position.
    """
    n_step, n_stream = tokens.shape
    if state.n.size and int(state.n.max()) + n_step > MAX_POSITION:
        raise ValueError(f"a stream has more than {MAX_POSITION} tokens")
    c = model.config
    parts: list[np.ndarray] = []
    at = 0
    while at < n_step or not parts:
        n = state.n.tolist()
        for b in range(n_stream):
            if c.restarts(n[b]):
                _restart(model, b, state)
        end = min([n_step, *(at + c.room(b) for b in n)]) if c.n_position else n_step
        part = tokens[at:end]
        x = _trunk(model, part, state.n, state)
        for b in range(n_stream):
            if c.half:
                state.recent[b] = np.concatenate((state.recent[b], part[:, b]))[-c.half :]
        parts.append(x)
        at = end
    x = _normalise(np.concatenate(parts), model.norm, model.norm_bias, f32(c.norm_eps))
    y = product(x, model.head) * f32(c.logit_scale)
    if c.logit_cap:
        y = np.where(y > f32(-LOGIT_MAX), capped(y, f32(c.logit_cap)), y)  # what no token is stays so
    return to_integer(y, LOGIT_MAX)


def _restart(model: TransformerModel, stream: int, state: State) -> None:
    """The stream is fed its last `config.half` tokens again, at positions 0, 1, ..."""
    alone = start(model, 1)
    _trunk(model, state.recent[stream][:, None], np.zeros(1, np.int64), alone)
    state.position[stream] = alone.position[0]
    for held, new in (
        (state.key, alone.key),
        (state.key_scale, alone.key_scale),
        (state.value, alone.value),
        (state.value_scale, alone.value_scale),
    ):
        for layer, only in zip(held, new, strict=True):
            layer[stream] = only[0]


def _trunk(model: TransformerModel, tokens: np.ndarray, n: np.ndarray, state: State) -> np.ndarray:
    """(T, B, D) residual stream after the layers; the state, whose streams have taken (B,) n, moves on."""
    c = model.config
    n_step = len(tokens)
    place = np.array([c.place(b) for b in n.tolist()], np.int64)
    position = place + np.arange(n_step)[:, None]  # (T, B)
    eps = f32(c.norm_eps)
    x = embed(model.embed, tokens)  # (T, B, D)
    if model.position is not None:
        x = hold(x + embed(model.position, position))
    for i, layer in enumerate(model.layers):
        y = product(_normalise(x, layer.attention_norm, layer.attention_norm_bias, eps), layer.qkv)
        y = product(_attend(model, i, layer, y, position, state), layer.out)
        if layer.post_attention_norm is not None:
            y = hold(normalise(y, layer.post_attention_norm, eps))
        before, x = x, hold(x + y)
        y = _normalise(before if c.parallel else x, layer.mlp_norm, layer.mlp_norm_bias, eps)
        y = product(y, layer.gate_up)
        if c.gated:
            gate, up = np.split(y, 2, axis=-1)
            y = ACTIVATIONS[c.activation](gate) * up
        else:
            y = ACTIVATIONS[c.activation](y)
        y = product(y, layer.down)
        if layer.post_mlp_norm is not None:
            y = hold(normalise(y, layer.post_mlp_norm, eps))
        x = hold(x + y)
    for b in range(tokens.shape[1]):
        state.position[b] = _kept(c.window, c.sinks, position[-1, b], state.position[b], position[:, b])[1]
    n += n_step
    return x


# Elementwise work


def hold(x: np.ndarray) -> np.ndarray:
    """x held within +-2^40; 0 where it is smaller than 2^-60."""
    x = np.clip(x, -LARGEST, LARGEST)
    return np.where(np.abs(x) < SMALLEST, f32(0), x)


def to_integer(x: np.ndarray, most: int) -> np.ndarray:
    """x held within +-most, then to the nearest integer, ties to even: int32."""
    return np.rint(np.clip(x, f32(-most), f32(most))).astype(np.int32)


def rotate(x: np.ndarray) -> np.ndarray:
    """The Hadamard transform, not normalised, of every block of n elements of the last axis.

    n is the largest power of two that divides its length. For h = 1, 2, 4, ... n / 2 in turn each pair (a, b)
    of elements h apart becomes (a + b, a - b).
    """
    width = x.shape[-1]
    n, h = width & -width, 1
    while h < n:
        pairs = x.reshape(*x.shape[:-1], width // (2 * h), 2, h)
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        x = np.stack((a + b, a - b), axis=-2).reshape(x.shape)
        h *= 2
    return x


def quantise(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(..., n) float32 to (..., n) int8 within +-127 and (..., 1) float32 scales."""
    most = np.maximum(np.abs(x).max(axis=-1, keepdims=True), SCALE_MIN)
    codes = to_integer(x * (f32(ACTIVATION_MAX) / most), ACTIVATION_MAX).astype(np.int8)
    return codes, most / f32(ACTIVATION_MAX)


def sums(u: np.ndarray, w: np.ndarray) -> np.ndarray:
    """(..., N) int32 sums of (..., K) int8 with (N, K) int8."""
    out = np.zeros((*u.shape[:-1], len(w)), np.int32)
    for at in range(0, w.shape[1], _EXACT_FAN_IN):
        part = slice(at, at + _EXACT_FAN_IN)
        out += np.matmul(u[..., part].astype(f32), w[:, part].T.astype(f32)).astype(np.int32)
    return out


def product(x: np.ndarray, linear: Linear) -> np.ndarray:
    """(..., N) float32 of (..., K) float32: held, rotated, quantised, multiplied, scaled, held again."""
    codes, scale = quantise(rotate(hold(x)))
    y = (sums(codes, linear.weight).astype(f32) * linear.scale) * scale
    return hold(y if linear.bias is None else y + linear.bias)


def embed(linear: Linear, tokens: np.ndarray) -> np.ndarray:
    """(..., D) float32 of (...) tokens: rows of the rotated table, rotated back."""
    return hold(rotate(linear.weight[tokens].astype(f32) * linear.scale[tokens][..., None]))


def _halved(x: np.ndarray) -> np.ndarray:
    """(..., 1) float32 sums of (..., n), padded with zeros to a power of two.

    The upper half is added to the lower until one is left.
    """
    n = 1 << (x.shape[-1] - 1).bit_length()
    sums = np.zeros((*x.shape[:-1], n), f32)
    sums[..., : x.shape[-1]] = x
    while n > 1:
        n //= 2
        sums = sums[..., :n] + sums[..., n : 2 * n]
    return sums


def normalise(x: np.ndarray, weight: np.ndarray, eps: np.float32) -> np.ndarray:
    """RMS norm of (..., n) float32."""
    root = ONE / np.sqrt(_halved(x * x) / f32(x.shape[-1]) + eps)
    return (x * root) * weight


def layer_normalise(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: np.float32) -> np.ndarray:
    """Layer norm of (..., n) float32: without the mean, then as `normalise`, and a bias.

    Sums are at most 2^56, so that what is left is at most 2^41 in size and its squares' sum 2^98; the result
    is below 2^102. Values are 0 or multiples of 2^-83, a mean that is not 0 is at least 2^-99, a difference
    at least 2^-122. What is subnormal after its multiplication by the root is below 2^-86 after that by the
    weight, which a bias (at least 2^-60) absorbs and `hold` makes 0.
    """
    d = x - _halved(x) / f32(x.shape[-1])
    return normalise(d, weight, eps) + bias


def _normalise(
    x: np.ndarray, weight: np.ndarray | None, bias: np.ndarray | None, eps: np.float32
) -> np.ndarray:
    if weight is None:
        return x
    return normalise(x, weight, eps) if bias is None else layer_normalise(x, weight, bias, eps)


def exp_of_negative(x: np.ndarray) -> np.ndarray:
    """e^-x of x >= 0, x held to 80: 2^-116 to 1."""
    t = np.minimum(x, EXP_MAX) * -LOG2_E
    n = np.rint(t)
    f = t - n
    p = np.full_like(f, EXP2_TERMS[-1])
    for term in EXP2_TERMS[-2::-1]:
        p = p * f + term
    power = ((n.astype(np.int32) + 127) << 23).view(f32)  # 2^n, n from -116 to 0
    return p * power


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-x)."""
    e = exp_of_negative(np.abs(x))
    return np.where(x >= 0, ONE, e) / (ONE + e)


def silu(x: np.ndarray) -> np.ndarray:
    """x / (1 + e^-x)."""
    return x * sigmoid(x)


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    """x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2. |x| <= 2^40: its cube is at most 2^120."""
    by, cubic = GELU_TANH
    return x * sigmoid((x + ((x * x) * x) * cubic) * by)


def gelu(x: np.ndarray) -> np.ndarray:
    """x (1 + erf(x / sqrt(2))) / 2. With u held to 8, half of erfc(u) is at least 2^-98."""
    u = np.minimum(np.abs(x) * GELU_ROOT, GELU_MAX)
    t = ONE / (ONE + GELU_P * u)
    p = np.full_like(t, GELU_TERMS[-1])
    for term in GELU_TERMS[-2::-1]:
        p = p * t + term
    half = (p * t) * exp_of_negative(u * u)
    return x * np.where(x >= 0, ONE - half, half)


ACTIVATIONS = {"silu": silu, "gelu": gelu, "gelu_tanh": gelu_tanh}


def capped(x: np.ndarray, cap: np.float32) -> np.ndarray:
    """cap * tanh(x / cap), at most cap in size; 1 - e is 0 or at least 2^-24."""
    v = np.abs(x / cap)
    e = exp_of_negative(v + v)
    tanh = (ONE - e) / (ONE + e)
    return np.where(x < 0, -tanh, tanh) * cap


# Attention


@lru_cache(maxsize=4)
def _angle_tables(rotary: bytes, n: int) -> tuple[np.ndarray, np.ndarray]:
    one = np.frombuffer(rotary, np.float64).reshape(2, -1)
    low = _powers(one, 1 << LOW_BITS)
    last = low[:, -1]
    thousand = np.stack((last[0] * one[0] - last[1] * one[1], last[1] * one[0] + last[0] * one[1]))
    high = _powers(thousand, n)
    return low.astype(f32), high.astype(f32)


def _powers(one: np.ndarray, n: int) -> np.ndarray:
    """(2, n, E / 2) float64 cosines and sines of 0 to n - 1 times an angle, by doubling."""
    out = np.zeros((2, 1, one.shape[1]))
    out[0] = 1
    c, s = one
    while out.shape[1] < n:
        a, b = out
        out = np.concatenate((out, np.stack((a * c - b * s, b * c + a * s))), axis=1)
        c, s = c * c - s * s, s * c + c * s
    return out[:, :n]


def angles(
    model: TransformerModel, position: np.ndarray, sliding: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """(..., E / 2) float32 cosines and sines of the angles of (...) positions, or of a sliding layer's."""
    low, high = angle_tables(model, sliding)
    (a, b), (c, s) = high[:, position >> LOW_BITS], low[:, position & ((1 << LOW_BITS) - 1)]
    return a * c - b * s, b * c + a * s


def angle_tables(model: TransformerModel, sliding: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines, (2, n, E / 2) float32: of positions below 2^10, and of multiples of 2^10."""
    one = model.rotary[2:] if sliding else model.rotary[:2]
    return _angle_tables(one.tobytes(), MAX_POSITION >> LOW_BITS)


def turn(x: np.ndarray, cosine: np.ndarray, sine: np.ndarray) -> np.ndarray:
    """(..., E) float32 with pairs (i, i + E / 2) turned by (..., E / 2) angles."""
    a, b = np.split(x, 2, axis=-1)
    return hold(np.concatenate((a * cosine - b * sine, b * cosine + a * sine), axis=-1))


def _kept(
    window: int, sinks: int, last: int, held: np.ndarray, new: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of held and new positions: which are still seen after position `last`, and they."""
    every = np.concatenate((held, new))
    keep = (every < sinks) | (every > last + 1 - window)
    return keep, every[keep]


def _attend(
    model: TransformerModel, i: int, layer: Layer, y: np.ndarray, position: np.ndarray, state: State
) -> np.ndarray:
    """Of (T, B, (H + 2 G) E) queries, keys, values: (T, B, H E) float32. The state takes keys and values."""
    c = model.config
    n_step, n_stream = y.shape[:2]
    y = y.reshape(n_step, n_stream, c.n_head + 2 * c.n_kv_head, c.head_dim)
    query, key, value = np.split(y, (c.n_head, c.n_head + c.n_kv_head), axis=2)
    if layer.q_norm is not None and layer.k_norm is not None:
        eps = f32(c.norm_eps)
        shapes = query.shape, key.shape
        if c.qk_norm_whole:
            query, key = (x.reshape(n_step, n_stream, -1) for x in (query, key))
        query, key = hold(normalise(query, layer.q_norm, eps)), hold(normalise(key, layer.k_norm, eps))
        query, key = query.reshape(shapes[0]), key.reshape(shapes[1])
    slides = i in c.sliding
    window, sinks = (c.sliding_window, c.sliding_sinks) if slides else (c.window, c.sinks)
    near = far = query  # for keys of the window, and for sinks that have left it
    if i not in c.no_rotary:
        cosine, sine = (a[:, :, None] for a in angles(model, position, slides))
        near, key = turn(query, cosine, sine), turn(key, cosine, sine)
        far = turn(query, *(a[:, :, None] for a in angles(model, np.minimum(position, window), slides)))
    near_codes, near_scale = quantise(near)
    far_codes, far_scale = quantise(far)
    key_codes, key_scale = quantise(key)
    value_codes, value_scale = quantise(value)
    out = np.empty((n_step, n_stream, c.n_head, c.head_dim), f32)
    for b in range(n_stream):
        at = np.concatenate((state.position[b], position[:, b]))  # (N)
        k, ks, v, vs = (
            np.concatenate((held[i][b], new[:, b]))
            for held, new in (
                (state.key, key_codes),
                (state.key_scale, key_scale[..., 0]),
                (state.value, value_codes),
                (state.value_scale, value_scale[..., 0]),
            )
        )
        for h in range(c.n_head):
            g = h // (c.n_head // c.n_kv_head)
            out[:, b, h] = attention(
                (near_codes[:, b, h], near_scale[:, b, h], far_codes[:, b, h], far_scale[:, b, h]),
                (k[:, g], ks[:, g], v[:, g], vs[:, g]),
                position[:, b],
                at,
                window,
                sinks,
                f32(c.score_scale),
                f32(c.score_cap),
            )
        keep, _ = _kept(c.window, c.sinks, int(position[-1, b]), state.position[b], position[:, b])
        state.key[i][b], state.key_scale[i][b] = k[keep], ks[keep]
        state.value[i][b], state.value_scale[i][b] = v[keep], vs[keep]
    return out.reshape(n_step, n_stream, c.n_head * c.head_dim)


def attention(
    query: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    held: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    position: np.ndarray,
    at: np.ndarray,
    window: int,
    sinks: int,
    score_scale: np.float32,
    score_cap: np.float32 = ZERO,
) -> np.ndarray:
    """One head's mean of values for T queries.

    Args:
        query: (T, E) int8 codes and (T, 1) float32 scales for keys of the window; the same for sinks that
            have left it.
        held: (N, E) int8 codes and (N,) float32 scales of keys; the same of values.
        position: (T,) of the queries.
        at: (N,) of the keys.
        window, sinks, score_scale, score_cap: of the model's layer.

    Returns:
        (T, E) float32.
    """
    near, near_scale, far, far_scale = query
    key, key_scale, value, value_scale = held
    in_window = (at <= position[:, None]) & (at > position[:, None] - window)  # (T, N)
    is_sink = (at <= position[:, None]) & (at < sinks) & ~in_window
    dot = np.where(is_sink, sums(far, key), sums(near, key))  # below 2^24
    scale = np.where(is_sink, far_scale * score_scale, near_scale * score_scale)
    z = (dot.astype(f32) * key_scale) * scale
    score = to_integer(capped(z, score_cap) if score_cap else z, SCORE_MAX).astype(np.int64)
    seen = in_window | is_sink
    below = np.where(seen, score, -SCORE_MAX).max(axis=1, keepdims=True) - score
    e = tables.exp2()[below & 255] >> np.minimum(below >> 8, 31)  # 2^24 for the likeliest
    e = np.where(seen, e, 0)
    # Probabilities times the values' scales, in 15 bits.
    a = e.astype(f32) * value_scale
    most = a.max(axis=1, keepdims=True)
    t = to_integer(a * (HALF_BITS / most), 1 << 15).astype(np.int64)
    total = t.sum(axis=1, keepdims=True)  # 2^15 to 2^29
    by = np.minimum((_PROBABILITY << 16) // total, 65_535)
    p = (t * by) >> 16
    mean = np.matmul(p, value.astype(np.int64))  # at most 32,767 * 127
    of = p.sum(axis=1, keepdims=True)  # 1 to 32,767
    back = ((most * f32(2.0**-15)) * total.astype(f32)) / e.sum(axis=1, keepdims=True).astype(f32)
    return mean.astype(f32) * (back / of.astype(f32))


# The self-test

KNOWN_POSITIONS, KNOWN_STREAMS = 8, 2


def known_tokens(model: TransformerModel) -> np.ndarray:
    """(T, B) int64 tokens of the self-test: the two starts, then residues of multiples of two primes."""
    t, b = np.mgrid[:KNOWN_POSITIONS, :KNOWN_STREAMS]
    tokens = (t * 40_503 + b * 30_011) % model.config.vocab_size
    tokens[0] = model.config.start
    return tokens


def compute_known_answer(model: TransformerModel) -> str:
    """SHA-256, in hexadecimal, of the frequencies of `known_tokens` by this definition."""
    freq = frequencies(sequence(model, known_tokens(model), start(model, KNOWN_STREAMS)))
    return hashlib.sha256(freq.astype("<u4").tobytes()).hexdigest()
