"""The transformer of arithmetic 2 in torch, on a CPU or a CUDA device: the integers of `reference.py`.

Elementwise work is float32, tensor by tensor and one operation at a time, as the definition writes it: no
operation with a Python number where torch would multiply by a reciprocal, none that fuses or approximates
(addcmul, rsqrt, sigmoid, softmax, a compiler). A root is that of the double, rounded: torch's float32 root on
CPUs is not the nearest. Matrix products run in float32 over at most 2,048 inputs at a time, so that every
partial sum is below 2^24, or in int8 with int32 sums where the device has such a product.

A stream's keys and values lie in S + W places: the first S positions in the first S, position t in
S + (t - S) mod W.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lmcodec.errors import Unsupported
from lmcodec.lm import tables, torch_device
from lmcodec.lm.transformer import reference
from lmcodec.lm.transformer.model import LARGEST, SCALE_MIN, SMALLEST, Linear, TransformerModel
from lmcodec.lm.transformer.reference import (
    ACTIVATION_MAX,
    EXP2_TERMS,
    EXP_MAX,
    GELU_MAX,
    GELU_P,
    GELU_ROOT,
    GELU_TANH,
    GELU_TERMS,
    LOG2_E,
    LOGIT_MAX,
    SCORE_MAX,
)
from lmcodec.lm.transformer.shape import MAX_POSITION

_EXACT_FAN_IN = 2048
_EMPTY = -1  # the position of a place that holds nothing


@dataclass
class TorchState:
    """Keys and values of B streams, C = S + W places each.

    Attributes:
        n: (B,) int64 on the CPU: the position of each stream's next token.
        position: (B, C) int64: of what each place holds, -1 for nothing.
        key, value: (L, B, C, G, E) int8.
        key_scale, value_scale: (L, B, C, G) float32.
        recent: (B, P / 2) int64: with learned positions each stream's last tokens, by number.
    """

    n: Tensor
    position: Tensor
    key: Tensor
    key_scale: Tensor
    value: Tensor
    value_scale: Tensor
    recent: Tensor

    def only(self, stream: int) -> TorchState:
        """The same places of one stream, as the only one."""
        of = slice(stream, stream + 1)
        k, ks, v, vs = (x[:, of] for x in (self.key, self.key_scale, self.value, self.value_scale))
        return TorchState(self.n[of], self.position[of], k, ks, v, vs, self.recent[of])


class TorchTransformer:
    """A transformer on a device.

    Args:
        model: what to run.
        device: "cpu", "cuda" or "cuda:n".

    Raises:
        ConfigError: there is no such device.
    """

    def __init__(self, model: TransformerModel, device: str | torch.device = "cpu") -> None:
        self.model = model
        self.device = torch_device.find(device)
        self._exp2 = torch.tensor(tables.exp2(), dtype=torch.int64, device=self.device)
        self._tables = {
            name: (
                torch.tensor(table.weight, dtype=torch.int8, device=self.device),
                self._vector(table.scale)[:, None],
            )
            for name, table in (("embed", model.embed), ("position", model.position))
            if table is not None
        }
        self._linear = {
            name: _TorchLinear(linear, self.device)
            for name, linear in model.linears().items()
            if name not in self._tables
        }
        self._norm = {name: self._vector(vector) for name, vector in model.vectors().items()}

    def start(self, n_stream: int) -> TorchState:
        """Before the first token of B streams."""
        c = self.model.config
        place = c.n_layer, n_stream, c.sinks + c.window, c.n_kv_head

        def codes() -> Tensor:
            return torch.zeros((*place, c.head_dim), dtype=torch.int8, device=self.device)

        def scales() -> Tensor:
            return torch.zeros(place, device=self.device)

        return TorchState(
            torch.zeros(n_stream, dtype=torch.int64),
            torch.full(place[1:3], _EMPTY, dtype=torch.int64, device=self.device),
            codes(),
            scales(),
            codes(),
            scales(),
            torch.zeros((n_stream, c.half), dtype=torch.int64, device=self.device),
        )

    def begin(self, state: TorchState, stream: int) -> None:
        """Stream `stream` begins anew."""
        state.n[stream] = 0
        state.position[stream] = _EMPTY

    def step(self, tokens: np.ndarray, state: TorchState) -> Tensor:
        """Logits of the next tokens.

        Args:
            tokens: (B,) integers, 0 <= token < V + 2.
            state: of B streams; moves on by one token.

        Returns:
            (B, V) int32 logits on the device, steps of 2^-8 of a binary logarithm.
        """
        return self.sequence(tokens[None], state)[0]

    def sequence(self, tokens: np.ndarray, state: TorchState) -> Tensor:
        """Logits at T positions of B streams: what T calls of `step` give.

        Args:
            tokens: (T, B) integers, 0 <= token < V + 2, T >= 1.
            state: of B streams; moves on by T tokens.

        Returns:
            (T, B, V) int32 logits on the device.

        Raises:
            ValueError: a stream would pass the largest position.
        """
        if len(tokens) > self.model.config.window:  # more would not leave what the next ones see
            parts = np.split(tokens, range(self.model.config.window, len(tokens), self.model.config.window))
            return torch.cat([self.sequence(part, state) for part in parts])
        if int(state.n.max()) + len(tokens) > MAX_POSITION:
            raise ValueError(f"a stream has more than {MAX_POSITION} tokens")
        with torch.no_grad(), torch_device.exact(self.device):
            return self._sequence(torch.from_numpy(tokens.astype(np.int64)).to(self.device), state)

    def _sequence(self, tokens: Tensor, state: TorchState) -> Tensor:
        c = self.model.config
        parts, at = [], 0
        while at < len(tokens):
            end = len(tokens)
            for b, n in enumerate(state.n.tolist()) if c.n_position else ():
                if c.restarts(n):
                    state.position[b] = _EMPTY
                    again = torch.zeros(1, dtype=torch.int64)
                    self._trunk(state.recent[b][:, None], again, state.only(b))
                end = min(end, at + c.room(n))
            part = tokens[at:end]
            if c.n_position:
                number = (state.n + torch.arange(end - at)[:, None])[-c.half :] % c.half
                streams = torch.arange(part.shape[1], device=self.device).expand(number.shape)
                state.recent[streams, number.to(self.device)] = part[-c.half :]
            parts.append(self._trunk(part, torch.tensor([c.place(n) for n in state.n.tolist()]), state))
            state.n += end - at
            at = end
        y = self._linear["head"](self._normalise(torch.cat(parts), "norm"))
        y = y * _number(c.logit_scale, y)
        if c.logit_cap:
            y = torch.where(y > -LOGIT_MAX, _capped(y, c.logit_cap), y)
        return _to_integer(y, LOGIT_MAX).to(torch.int32)

    def _row(self, name: str, rows: Tensor) -> Tensor:
        table, scale = self._tables[name]
        return _hold(_rotate(table[rows].to(torch.float32) * scale[rows]))

    def _trunk(self, tokens: Tensor, place: Tensor, state: TorchState) -> Tensor:
        """(T, B, D) residual stream after the layers; the first tokens' positions are (B,)."""
        c = self.model.config
        position = place + torch.arange(len(tokens))[:, None]  # (T, B)
        seen = _Seen(self, position, state, c.window, c.sinks)
        slides = _Seen(self, position, state, c.sliding_window, c.sliding_sinks, True) if c.sliding else seen
        x = self._row("embed", tokens)
        if c.n_position:
            x = _hold(x + self._row("position", seen.new))
        for i in range(c.n_layer):
            own = slides if i in c.sliding else seen
            y = self._linear[f"layers.{i}.qkv"](self._normalise(x, f"layers.{i}.attention_norm"))
            y = self._linear[f"layers.{i}.out"](self._attend(i, y, own, state))
            before = x
            x = _hold(x + self._after(y, f"layers.{i}.post_attention_norm"))
            y = self._normalise(before if c.parallel else x, f"layers.{i}.mlp_norm")
            y = self._linear[f"layers.{i}.gate_up"](y)
            activation = _ACTIVATIONS[c.activation]
            if c.gated:
                gate, up = y.split(c.mlp, dim=-1)
                y = activation(gate) * up
            else:
                y = activation(y)
            y = self._linear[f"layers.{i}.down"](y)
            x = _hold(x + self._after(y, f"layers.{i}.post_mlp_norm"))
        state.position[seen.stream, seen.place] = seen.new
        return x

    def _after(self, y: Tensor, name: str) -> Tensor:
        return _hold(self._normalise(y, name)) if name in self._norm else y

    def _normalise(self, x: Tensor, name: str) -> Tensor:
        """RMS norm or layer norm of (..., n) float32; x itself if there is none of that name."""
        if name not in self._norm:
            return x
        biased = f"{name}_bias" in self._norm
        width = _number(x.shape[-1], x)
        if biased:
            x = x - _halved(x) / width
        mean = _halved(x * x) / width + _number(self.model.config.norm_eps, x)
        root = _number(1, x) / torch.sqrt(mean.to(torch.float64)).to(torch.float32)
        y = (x * root) * self._norm[name]
        return y + self._norm[f"{name}_bias"] if biased else y

    def _attend(self, i: int, y: Tensor, seen: _Seen, state: TorchState) -> Tensor:
        """Of (T, B, (H + 2 G) E) queries, keys, values: (T, B, H E) float32. The state takes the last two."""
        c = self.model.config
        n_step, n_stream = y.shape[:2]
        heads = y.view(n_step, n_stream, -1, c.head_dim)
        query, key, value = heads.split((c.n_head, c.n_kv_head, c.n_kv_head), dim=2)
        if c.qk_norm:
            shapes = query.shape, key.shape
            if c.qk_norm_whole:
                query, key = query.flatten(2), key.flatten(2)
            query = _hold(self._normalise(query, f"layers.{i}.q_norm")).view(shapes[0])
            key = _hold(self._normalise(key, f"layers.{i}.k_norm")).view(shapes[1])
        near = far = query
        if i not in c.no_rotary:
            near, far = _turn(query, *seen.near), _turn(query, *seen.far)
            key = _turn(key, *seen.near)
        scale = _number(c.score_scale, y)
        near, near_scale = _quantise(near)
        far, far_scale = _quantise(far)
        held = []
        for new, codes, scales in (
            (key, state.key[i], state.key_scale[i]),
            (value, state.value[i], state.value_scale[i]),
        ):
            u, s = _quantise(new)
            s = s[..., 0]
            held += [torch.cat((codes, u.transpose(0, 1).to(torch.int8)), dim=1)]  # (B, N, G, E)
            held += [torch.cat((scales, s.transpose(0, 1)), dim=1)]  # (B, N, G)
            codes[seen.stream, seen.place] = u[-len(seen.place) :].to(torch.int8)
            scales[seen.stream, seen.place] = s[-len(seen.place) :]
        k, ks, v, vs = held

        def per_head(q: Tensor) -> Tensor:  # (B, G, H/G, T, ...)
            return q.view(n_step, n_stream, c.n_kv_head, -1, q.shape[-1]).permute(1, 2, 3, 0, 4)

        keys = k.to(torch.float32).permute(0, 2, 3, 1)[:, :, None]  # (B, G, 1, E, N)
        dot = per_head(near) @ keys
        dot = torch.where(seen.is_sink, per_head(far) @ keys, dot)
        ks, vs = (s.permute(0, 2, 1)[:, :, None, None] for s in (ks, vs))  # (B, G, 1, 1, N)
        by = torch.where(seen.is_sink, per_head(far_scale) * scale, per_head(near_scale) * scale)
        z = (dot * ks) * by
        if c.score_cap:
            z = _capped(z, c.score_cap)
        score = _to_integer(z, SCORE_MAX).to(torch.int64)  # (B, G, H/G, T, N)
        top = torch.where(seen.any, score, -SCORE_MAX).amax(dim=-1, keepdim=True)
        below = (top - score).clamp_(min=0)  # what is not seen counts for nothing
        e = self._exp2[below & 255] >> (below >> 8).clamp_(max=31)
        e = torch.where(seen.any, e, 0)
        a = e.to(torch.float32) * vs
        most = a.amax(dim=-1, keepdim=True)
        t = _to_integer(a * (_number(2.0**15, y) / most), 1 << 15).to(torch.int64)
        total = t.sum(dim=-1, keepdim=True)
        inverse = torch.div(torch.full_like(total, 32_767 << 16), total, rounding_mode="floor")
        p = (t * inverse.clamp_(max=65_535)) >> 16
        mean = p.to(torch.float32) @ v.to(torch.float32).permute(0, 2, 1, 3)[:, :, None]  # below 2^22
        whole = (most * _number(2.0**-15, y)) * total.to(torch.float32)
        back = whole / e.sum(dim=-1, keepdim=True).to(torch.float32)
        out = mean * (back / p.sum(dim=-1, keepdim=True).to(torch.float32))
        return out.permute(3, 0, 1, 2, 4).reshape(n_step, n_stream, -1)

    def frequencies(self, logits: Tensor) -> Tensor:
        """Frequencies of the tokens: 2^24 for the likeliest, 1 at least.

        Args:
            logits: (..., V) int32 on the device.

        Returns:
            (..., V) int32.
        """
        below = (logits.amax(dim=-1, keepdim=True) - logits).to(torch.int64)
        return (self._exp2[below & 255] >> (below >> 8).clamp_(max=31)).clamp_(min=1).to(torch.int32)

    def self_test(self, known: str) -> None:
        """Refuse to go on if the device answers otherwise than the model's definition.

        Args:
            known: the model's known answer, 64 hexadecimal digits.

        Raises:
            Unsupported: the answers differ.
        """
        state = self.start(reference.KNOWN_STREAMS)
        freq = self.frequencies(self.sequence(reference.known_tokens(self.model), state))
        answer = hashlib.sha256(freq.cpu().numpy().astype("<u4").tobytes()).hexdigest()
        if answer != known:
            raise Unsupported(
                f"torch {torch.__version__} on {self.device} computes model {self.model.model_id} wrong: "
                f"its self-test gives {answer[:16]}, expected {known[:16]}; use another executor"
            )

    def _vector(self, values: np.ndarray) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device)


class _Seen:
    """Which places and new positions the queries of T steps see, and the angles of these.

    Attributes:
        any, is_sink: (B, 1, 1, T, C + T) bool.
        near, far: cosines and sines (T, B, 1, E / 2).
        stream, place: (n, B) where the last n new positions go, n = min(T, C).
        new: (n, B) these positions.
    """

    def __init__(
        self,
        owner: TorchTransformer,
        position: Tensor,
        state: TorchState,
        window: int,
        sinks: int,
        sliding: bool = False,
    ) -> None:
        c, device = owner.model.config, owner.device
        n_step, n_stream = position.shape

        def turned(at: Tensor) -> tuple[Tensor, Tensor]:
            cosine, sine = reference.angles(owner.model, at.numpy(), sliding)
            return tuple(torch.from_numpy(a[:, :, None]).to(device) for a in (cosine, sine))

        self.near, self.far = turned(position), turned(position.clamp(max=window))
        query = position.to(device).t()[:, :, None]  # (B, T, 1)
        at = torch.cat((state.position, position.to(device).t()), dim=1)[:, None]  # (B, 1, C + T)
        past = (at != _EMPTY) & (at <= query)
        in_window = past & (at > query - window)
        is_sink = past & (at < sinks) & ~in_window
        self.any, self.is_sink = (m[:, None, None] for m in (in_window | is_sink, is_sink))
        self.new = position.to(device)
        ring = c.sinks + (self.new - c.sinks) % c.window
        self.place = torch.where(self.new < c.sinks, self.new, ring)
        self.stream = torch.arange(n_stream, device=device).expand(n_step, n_stream)


class _TorchLinear:
    """A matrix product: (..., K) float32 to (..., N) float32."""

    def __init__(self, linear: Linear, device: torch.device) -> None:
        self.weight = torch.tensor(linear.weight, device=device).to(torch.float32).t()  # (K, N)
        self.scale = torch.tensor(linear.scale, device=device)
        self.bias = None if linear.bias is None else torch.tensor(linear.bias, device=device)

    def __call__(self, x: Tensor) -> Tensor:
        codes, scale = _quantise(_rotate(_hold(x)))
        k = len(self.weight)
        if k <= _EXACT_FAN_IN:
            sums = codes @ self.weight
        else:
            parts = [slice(at, at + _EXACT_FAN_IN) for at in range(0, k, _EXACT_FAN_IN)]
            whole = sum(((codes[..., p] @ self.weight[p]).to(torch.int32) for p in parts), torch.tensor(0))
            sums = whole.to(torch.float32)
        y = (sums * self.scale) * scale
        return _hold(y if self.bias is None else y + self.bias)


def _number(value: float, like: Tensor) -> Tensor:
    """A float32 on the device, as an operand of its own."""
    return torch.tensor(value, dtype=torch.float32, device=like.device)


def _hold(x: Tensor) -> Tensor:
    x = x.clamp(-float(LARGEST), float(LARGEST))
    return torch.where(x.abs() < float(SMALLEST), 0.0, x)


def _to_integer(x: Tensor, most: int) -> Tensor:
    """x held within +-most, then the nearest integer, ties to even: float32."""
    return x.clamp(-most, most).round()


def _rotate(x: Tensor) -> Tensor:
    width = x.shape[-1]
    n, h = width & -width, 1
    while h < n:
        a, b = x.reshape(*x.shape[:-1], width // (2 * h), 2, h).unbind(dim=-2)
        x = torch.stack((a + b, a - b), dim=-2).reshape(x.shape)
        h *= 2
    return x


def _quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """(..., n) float32 to (..., n) integers within +-127, as float32, and (..., 1) scales."""
    most = x.abs().amax(dim=-1, keepdim=True).clamp(min=float(SCALE_MIN))
    top = _number(ACTIVATION_MAX, x)
    return _to_integer(x * (top / most), ACTIVATION_MAX), most / top


def _halved(x: Tensor) -> Tensor:
    """(..., 1) sums of (..., n), padded with zeros to a power of two, the upper half added to the lower."""
    width = x.shape[-1]
    n = 1 << (width - 1).bit_length()
    sums = torch.nn.functional.pad(x, (0, n - width))
    while n > 1:
        n //= 2
        sums = sums[..., :n] + sums[..., n : 2 * n]
    return sums


def _exp_of_negative(x: Tensor) -> Tensor:
    t = x.clamp(max=float(EXP_MAX)) * _number(-float(LOG2_E), x)
    n = t.round()
    f = t - n
    p = torch.full_like(f, float(EXP2_TERMS[-1]))
    for term in EXP2_TERMS[-2::-1]:
        p = p * f
        p = p + _number(float(term), x)
    return p * ((n.to(torch.int32) + 127) << 23).view(torch.float32)


def _sigmoid(x: Tensor) -> Tensor:
    e = _exp_of_negative(x.abs())
    one = torch.ones_like(e)
    return torch.where(x >= 0, one, e) / (one + e)


def _silu(x: Tensor) -> Tensor:
    return x * _sigmoid(x)


def _gelu_tanh(x: Tensor) -> Tensor:
    by, cubic = (_number(float(number), x) for number in GELU_TANH)
    term = ((x * x) * x) * cubic
    return x * _sigmoid((x + term) * by)


def _gelu(x: Tensor) -> Tensor:
    u = (x.abs() * _number(float(GELU_ROOT), x)).clamp(max=float(GELU_MAX))
    one = torch.ones_like(u)
    scaled = _number(float(GELU_P), x) * u
    t = one / (one + scaled)
    p = torch.full_like(t, float(GELU_TERMS[-1]))
    for term in GELU_TERMS[-2::-1]:
        p = p * t
        p = p + _number(float(term), x)
    half = (p * t) * _exp_of_negative(u * u)
    return x * torch.where(x >= 0, one - half, half)


_ACTIVATIONS = {"silu": _silu, "gelu": _gelu, "gelu_tanh": _gelu_tanh}


def _capped(x: Tensor, cap: float) -> Tensor:
    most = torch.full_like(x, cap)
    v = (x / most).abs()
    e = _exp_of_negative(v + v)
    one = torch.ones_like(e)
    tanh = (one - e) / (one + e)
    return torch.where(x < 0, -tanh, tanh) * most


def _turn(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return _hold(torch.cat((a * cosine - b * sine, b * cosine + a * sine), dim=-1))
