"""The transformer of arithmetic 2 in torch, on a CPU or a CUDA device: the integers of `reference.py`.

Elementwise work is float32, tensor by tensor and one operation at a time, as the definition writes it: no
operation with a Python number where torch would multiply by a reciprocal, none that fuses or approximates
(rsqrt, sigmoid, softmax, a compiler; addcmul only where a factor is 1 or -1, so that fusing changes nothing).
A root is that of the double, rounded: torch's float32 root on CPUs is not the nearest. Matrix products run in
float32 over at most 2,048 inputs at a time, so that every partial sum is below 2^24.

A stream's keys and values lie in S + W places: the first S positions in the first S, position t in
S + (t - S) mod W. A step writes its own into their places and then looks at all of them: all its buffers have
the same shape and place at every position, nothing is read back to the host, and no branch depends on data.
So a CUDA device takes it as one captured graph (`torch_device.Replay`). Several positions at once look at the
places as they were and at the new ones behind them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

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
    LOW_BITS,
    SCORE_MAX,
)
from lmcodec.lm.transformer.shape import MAX_POSITION

_EXACT_FAN_IN = 2048
_EMPTY = -1  # the position of a place that holds nothing
_UNSEEN = -SCORE_MAX - (
    32 << 8
)  # a score 2^32 times less likely than any that is seen: it counts for nothing
_BELOW_SMALLEST = float(np.nextafter(SMALLEST, np.float32(0)))


@dataclass
class TorchState:
    """Keys and values of B streams, C = S + W places each. All tensors keep their places in memory.

    Attributes:
        n: (B,) int64 on the CPU: tokens that each stream has taken.
        at: (B,) int64: the position of each stream's next token.
        position: (B, C) int64: of what each place holds, -1 for nothing.
        codes: (L, 2, B, G, C, E) int8: keys, then values.
        scale: (L, 2, B, G, C) float32.
        recent: (B, P / 2) int64: with learned positions each stream's last tokens, by number.
        given: (B,) int64: the tokens of a step.
        replay: of steps.
    """

    n: Tensor
    at: Tensor
    position: Tensor
    codes: Tensor
    scale: Tensor
    recent: Tensor
    given: Tensor
    replay: torch_device.Replay


class TorchTransformer:
    """A transformer on a device.

    Args:
        model: what to run.
        device: "cpu", "cuda" or "cuda:n".
        capture: take steps as a captured graph, on a CUDA device.

    Raises:
        ConfigError: there is no such device.
    """

    def __init__(
        self, model: TransformerModel, device: str | torch.device = "cpu", *, capture: bool = True
    ) -> None:
        self.model = model
        self.device = torch_device.find(device)
        self._capture = capture
        self._exp2 = torch.tensor(tables.exp2(), dtype=torch.int32, device=self.device)
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
        c = model.config
        # Of cosines and sines, (2, n, E / 2): of the low bits of a position, and of the others.
        self._angles = [
            tuple(self._vector(t) for t in reference.angle_tables(model, slides)) if rotates else None
            for slides, rotates in ((False, len(c.no_rotary) < c.n_layer), (True, bool(c.sliding)))
        ]
        is_value = np.arange(c.n_head + 2 * c.n_kv_head) >= c.n_head + c.n_kv_head
        self._probability = torch.tensor(32_767 << 16, dtype=torch.int32, device=self.device)
        self._is_value = torch.tensor(is_value[:, None], device=self.device)  # (H + 2 G, 1)

    def start(self, n_stream: int) -> TorchState:
        """Before the first token of B streams."""
        c, device = self.model.config, self.device
        n_place = c.sinks + c.window
        cache = c.n_layer, 2, n_stream, c.n_kv_head, n_place
        return TorchState(
            torch.zeros(n_stream, dtype=torch.int64),
            torch.zeros(n_stream, dtype=torch.int64, device=device),
            torch.full((n_stream, n_place), _EMPTY, dtype=torch.int64, device=device),
            torch.zeros((*cache, c.head_dim), dtype=torch.int8, device=device),
            torch.zeros(cache, device=device),
            torch.zeros((n_stream, c.half), dtype=torch.int64, device=device),
            torch.zeros(n_stream, dtype=torch.int64, device=device),
            torch_device.Replay(device, self._capture),
        )

    def begin(self, state: TorchState, stream: int) -> None:
        """Stream `stream` begins anew."""
        state.n[stream] = 0
        state.at[stream] = 0
        state.position[stream] = _EMPTY

    def step(self, tokens: np.ndarray, state: TorchState) -> Tensor:
        """Logits of the next tokens.

        Args:
            tokens: (B,) integers, 0 <= token < V + 2.
            state: of B streams; moves on by one token.

        Returns:
            (B, V) int32 logits on the device, steps of 2^-8 of a binary logarithm.

        Raises:
            ValueError: a stream would pass the largest position.
        """
        _require_room(state, 1)
        with torch.no_grad(), torch_device.exact(self.device):
            self._restart_where_due(state)
            state.given.copy_(torch.from_numpy(tokens.astype(np.int64)))
            logits = state.replay(lambda: self.one_step(state))
            state.n += 1
            return logits

    def one_step(self, state: TorchState) -> Tensor:
        """What a step does on the device: (B, V) int32 logits of `state.given`. Only `state.n` stays."""
        return self._logits(self._part(state.given[None], state))[0]

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
        _require_room(state, len(tokens))
        with torch.no_grad(), torch_device.exact(self.device):
            return self._sequence(torch.from_numpy(tokens.astype(np.int64)).to(self.device), state)

    def _sequence(self, tokens: Tensor, state: TorchState) -> Tensor:
        c = self.model.config
        parts, at = [], 0
        while at < len(tokens):
            end = len(tokens)
            if c.n_position:
                self._restart_where_due(state)
                end = min(end, *(at + c.room(n) for n in state.n.tolist()))
            parts.append(self._part(tokens[at:end], state))
            state.n += end - at
            at = end
        return self._logits(torch.cat(parts))

    def _restart_where_due(self, state: TorchState) -> None:
        """Streams that have had all learned positions are fed their last tokens again, from position 0 on."""
        c = self.model.config
        for b, n in enumerate(state.n.tolist()) if c.n_position else ():
            if c.restarts(n):
                alone = self.start(1)
                self._trunk(state.recent[b][:, None], alone)
                state.at[b] = alone.at[0]
                state.position[b] = alone.position[0]
                state.codes[:, :, b] = alone.codes[:, :, 0]
                state.scale[:, :, b] = alone.scale[:, :, 0]

    def _part(self, tokens: Tensor, state: TorchState) -> Tensor:
        """(T, B, D) of the trunk for tokens that no stream restarts in."""
        half = self.model.config.half
        if half:  # the number of a token and its position are the same modulo P / 2
            last = tokens[-half:]
            number = (state.at + _steps(len(tokens), state.at)[-half:]) % half
            state.recent.scatter_(1, number.t(), last.t())
        return self._trunk(tokens, state)

    def _logits(self, x: Tensor) -> Tensor:
        c = self.model.config
        y = self._linear["head"](self._normalise(x, "norm"))
        y = y * _number(c.logit_scale, y)
        if c.logit_cap:
            y = torch.where(y > -LOGIT_MAX, _capped(y, c.logit_cap), y)
        return _to_integer(y, LOGIT_MAX).to(torch.int32)

    def _row(self, name: str, rows: Tensor) -> Tensor:
        table, scale = self._tables[name]
        return _hold(_rotate(table[rows].to(torch.float32) * scale[rows]))

    def _trunk(self, tokens: Tensor, state: TorchState) -> Tensor:
        """(T, B, D) residual stream after the layers; the state moves on by T positions."""
        c = self.model.config
        position = state.at + _steps(len(tokens), state.at)  # (T, B)
        ring = (position - c.sinks) % c.window + c.sinks
        place = torch.where(position < c.sinks, position, ring).t()  # (B, T)
        held = state.position
        if len(tokens) == 1:
            held.scatter_(1, place, position.t())
        else:
            held = torch.cat((held, position.t()), dim=1)
        seen = _Seen(self, position, place, held, c.window, c.sinks)
        slides = seen
        if c.sliding:
            slides = _Seen(self, position, place, held, c.sliding_window, c.sliding_sinks, True)
        x = self._row("embed", tokens)
        if c.n_position:
            x = _hold(x + self._row("position", position))
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
        if len(tokens) > 1:
            state.position.scatter_(1, place, position.t())
        state.at += len(tokens)
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
            x = x - _halved(x.clone()) / width
        mean = (_halved(x * x) / width).add_(self.model.config.norm_eps)
        root = _number(1, x) / torch.sqrt(mean.to(torch.float64)).to(torch.float32)
        y = (x * root).mul_(self._norm[name])
        return y.add_(self._norm[f"{name}_bias"]) if biased else y

    def _attend(self, i: int, y: Tensor, seen: _Seen, state: TorchState) -> Tensor:
        """Of (T, B, (H + 2 G) E) queries, keys, values: (T, B, H E) float32. The state takes the last two."""
        c = self.model.config
        n_step, n_stream = y.shape[:2]
        heads = y.view(n_step, n_stream, -1, c.head_dim)
        if c.qk_norm:
            query, key, value = heads.split((c.n_head, c.n_kv_head, c.n_kv_head), dim=2)
            shapes = query.shape, key.shape
            if c.qk_norm_whole:
                query, key = query.flatten(2), key.flatten(2)
            query = _hold(self._normalise(query, f"layers.{i}.q_norm")).view(shapes[0])
            key = _hold(self._normalise(key, f"layers.{i}.k_norm")).view(shapes[1])
            heads = torch.cat((query, key, value), dim=2)
        # For keys of the window, and F = 2 where sinks can have left it for those. Values are not turned.
        turned = heads[None] if i in c.no_rotary else seen.turn(heads)  # (F, T, B, H + 2 G, E)
        codes, scale = _quantise(turned)

        def cached(x: Tensor, dtype: torch.dtype) -> Tensor:  # (2, B, G, T, ...)
            x = x[0, :, :, c.n_head :].view(n_step, n_stream, 2, c.n_kv_head, -1).permute(2, 1, 3, 0, 4)
            return x.to(dtype, memory_format=torch.contiguous_format).contiguous()

        new = cached(codes, torch.int8), cached(scale, torch.float32)[..., 0]
        held = state.codes[i], state.scale[i]
        flat = held[0].view(-1, c.head_dim), held[1].view(-1)
        if n_step > 1:  # before places are written
            held = torch.cat((held[0], new[0]), dim=3), torch.cat((held[1], new[1]), dim=3)
        flat[0].index_copy_(0, seen.rows, new[0].view(-1, c.head_dim))
        flat[1].index_copy_(0, seen.rows, new[1].reshape(-1))
        keys, values = held[0].to(torch.float32).flatten(1, 2)  # (B G, N, E) each
        key_scale, value_scale = held[1][:, :, :, None, None]  # (B, G, 1, 1, N) each

        def per_head(x: Tensor) -> Tensor:  # (B, G, F, H / G, T, ...)
            x = x[:, :, :, : c.n_head].unflatten(3, (c.n_kv_head, -1))
            return x.permute(2, 3, 0, 4, 1, 5)

        by = per_head(scale * _number(c.score_scale, y))
        shape = by.shape[:-1]
        dots = torch.bmm(per_head(codes).reshape(len(keys), -1, c.head_dim), keys.transpose(1, 2))
        dots = dots.view(*shape, -1)
        if len(turned) == 1:
            dot, by = dots[:, :, 0], by[:, :, 0]
        else:
            dot = torch.where(seen.is_sink, dots[:, :, 1], dots[:, :, 0])
            by = torch.where(seen.is_sink, by[:, :, 1], by[:, :, 0])
        z = (dot * key_scale).mul_(by)
        if c.score_cap:
            z = _capped(z, c.score_cap)
        score = _to_integer(z, SCORE_MAX).masked_fill_(seen.none, _UNSEEN)  # (B, G, H / G, T, N)
        # What is not seen may be rounded here, and is shifted out.
        e = self._power(score.amax(dim=-1, keepdim=True) - score)
        a = e * value_scale  # below 2^24, converted exactly
        most = a.amax(dim=-1, keepdim=True)
        t = a.mul_(_number(2.0**15, y) / most).round_().to(torch.int32)  # at most 2^15
        total = t.sum(dim=-1, keepdim=True, dtype=torch.int32)  # 2^15 to 2^29
        inverse = torch.div(self._probability, total, rounding_mode="floor").clamp_(max=65_535)
        p = t.mul_(inverse).bitwise_right_shift_(16).to(torch.float32)  # t * inverse < 2^31
        mean = torch.bmm(p.view(len(values), -1, p.shape[-1]), values)  # below 2^22
        back = (most * _number(2.0**-15, y)).mul_(total)
        back = back / e.sum(dim=-1, keepdim=True, dtype=torch.int64)
        out = mean.view(*p.shape[:-1], -1) * (back / p.sum(dim=-1, keepdim=True))  # (B, G, H / G, T, E)
        return out.permute(3, 0, 1, 2, 4).reshape(n_step, n_stream, -1)

    def _power(self, below: Tensor) -> Tensor:
        """2^24 / 2^(below / 256) of non-negative integers, by the table: int32."""
        below = below.to(torch.int32)
        e = self._exp2.index_select(0, (below & 255).view(-1)).view(below.shape)
        return e.bitwise_right_shift_(below.bitwise_right_shift_(8).clamp_(max=31))

    def frequencies(self, logits: Tensor) -> Tensor:
        """Frequencies of the tokens: 2^24 for the likeliest, 1 at least.

        Args:
            logits: (..., V) int32 on the device.

        Returns:
            (..., V) int32.
        """
        return self._power(logits.amax(dim=-1, keepdim=True) - logits).clamp_(min=1)

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
    """Which of N places the queries of T steps see, the angles of these, and where new positions go.

    Attributes:
        none, is_sink: (B, 1, 1, T, N) bool: what is not seen, and what is a sink that has left the window.
        rows: (2 B G T,) int64 rows of a layer's cache, as (2 B G C, ...), that the new positions take.
    """

    def __init__(
        self,
        owner: TorchTransformer,
        position: Tensor,
        place: Tensor,
        at: Tensor,
        window: int,
        sinks: int,
        sliding: bool = False,
    ) -> None:
        c = owner.model.config
        query = position.t()[:, :, None]  # (B, T, 1)
        at = at[:, None]  # (B, 1, N)
        past = (at != _EMPTY) & (at <= query)
        inside = at > query - window
        is_sink = (past & (at < sinks)) & ~inside
        none = ~((past & inside) | is_sink)
        self.none, self.is_sink = (m[:, None, None] for m in (none, is_sink))
        first = torch.arange(2 * len(place) * c.n_kv_head, device=place.device) * (c.sinks + c.window)
        self.rows = (first.view(2, len(place), -1, 1) + place[:, None]).flatten()
        tables = owner._angles[sliding]
        if tables is None:
            return
        at = torch.stack((position, position.clamp(max=window))) if sinks else position[None]  # (F, T, B)
        low, high = tables
        a, b = high[:, at >> LOW_BITS]  # (F, T, B, E / 2) each
        cosine, sine = low[:, at & ((1 << LOW_BITS) - 1)]
        cosine, sine = (a * cosine - b * sine)[..., None, :], (b * cosine + a * sine)[..., None, :]
        cosine, sine = torch.cat((cosine, cosine), dim=-1), torch.cat((-sine, sine), dim=-1)
        # (F, T, B, H + 2 G, E); values stay as they are.
        self._cosine = torch.where(owner._is_value, _number(1, cosine), cosine)
        self._sine = torch.where(owner._is_value, _number(0, sine), sine)

    def turn(self, heads: Tensor) -> Tensor:
        """(F, T, B, H + 2 G, E) of (T, B, H + 2 G, E): pairs (i, i + E / 2) turned, held."""
        other = heads.roll(heads.shape[-1] // 2, dims=-1)
        return _hold((heads * self._cosine).add_(other * self._sine))


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
            whole = (codes[..., parts[0]] @ self.weight[parts[0]]).to(torch.int32)
            for p in parts[1:]:
                whole += (codes[..., p] @ self.weight[p]).to(torch.int32)
            sums = whole.to(torch.float32)
        y = (sums * self.scale).mul_(scale)
        return _hold(y if self.bias is None else y.add_(self.bias))


def _require_room(state: TorchState, n: int) -> None:
    if int(state.n.max()) + n > MAX_POSITION:
        raise ValueError(f"a stream has more than {MAX_POSITION} tokens")


@lru_cache(maxsize=64)
def _constant(value: float, device: torch.device) -> Tensor:
    return torch.tensor(value, dtype=torch.float32, device=device)


def _number(value: float, like: Tensor) -> Tensor:
    """A float32 on the device, as an operand of its own."""
    return _constant(float(value), like.device)


def _steps(n: int, like: Tensor) -> Tensor:
    """(n, 1) int64: 0 to n - 1."""
    return torch.arange(n, device=like.device)[:, None]


def _hold(x: Tensor) -> Tensor:
    return torch.nn.functional.hardshrink(x.clamp(-float(LARGEST), float(LARGEST)), _BELOW_SMALLEST)


def _to_integer(x: Tensor, most: int) -> Tensor:
    """x held within +-most, then the nearest integer, ties to even: float32."""
    return x.clamp(-most, most).round_()


@lru_cache(maxsize=8)
def _signs(device: torch.device) -> Tensor:
    return torch.tensor([[1.0], [-1.0]], device=device)


def _rotate(x: Tensor) -> Tensor:
    width = x.shape[-1]
    n, h = width & -width, 1
    while h < n:
        pairs = x.reshape(*x.shape[:-1], width // (2 * h), 2, h)
        # a + 1 b and a + -1 b: the products are exact.
        x = torch.addcmul(pairs[..., :1, :], pairs[..., 1:, :], _signs(x.device)).view(x.shape)
        h *= 2
    return x


def _quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """(..., n) float32 to (..., n) integers within +-127, as float32, and (..., 1) scales.

    Not held to 127, as the definition has it: |x| <= most, so that a product is at most 127 (1 + 2^-24)^2.
    """
    most = x.abs().amax(dim=-1, keepdim=True).clamp_(min=float(SCALE_MIN))
    top = _number(ACTIVATION_MAX, x)
    return (x * (top / most)).round_(), most / top


def _halved(x: Tensor) -> Tensor:
    """(..., 1) sums of (..., n), padded with zeros to a power of two, the upper half added to the lower.

    Writes into x; zeros are not added, which leaves a sum of -0 as it is.
    """
    width = x.shape[-1]
    n = 1 << (width - 1).bit_length()
    if n > width:
        n //= 2
        x[..., : width - n] += x[..., n:]
    while n > 1:
        n //= 2
        x = x[..., :n] + x[..., n : 2 * n]
    return x[..., :1]


def _exp_of_negative(x: Tensor) -> Tensor:
    t = x.clamp(max=float(EXP_MAX)).mul_(-float(LOG2_E))
    n = t.round()
    f = t - n
    p = f * float(EXP2_TERMS[-1])
    for term in EXP2_TERMS[-2:0:-1]:
        p.add_(float(term)).mul_(f)
    p.add_(float(EXP2_TERMS[0]))
    return p * n.to(torch.int32).add_(127).bitwise_left_shift_(23).view(torch.float32)


def _sigmoid(x: Tensor) -> Tensor:
    e = _exp_of_negative(x.abs())
    return torch.where(x >= 0, _number(1, x), e) / (e + 1.0)


def _silu(x: Tensor) -> Tensor:
    return x * _sigmoid(x)


def _gelu_tanh(x: Tensor) -> Tensor:
    by, cubic = (float(number) for number in GELU_TANH)
    term = (x * x).mul_(x).mul_(cubic)
    return x * _sigmoid(term.add_(x).mul_(by))


def _gelu(x: Tensor) -> Tensor:
    u = x.abs().mul_(float(GELU_ROOT)).clamp_(max=float(GELU_MAX))
    t = _number(1, x) / (u * float(GELU_P)).add_(1.0)
    p = t * float(GELU_TERMS[-1])
    for term in GELU_TERMS[-2:0:-1]:
        p.add_(float(term)).mul_(t)
    p.add_(float(GELU_TERMS[0]))
    half = p.mul_(t).mul_(_exp_of_negative(u * u))
    return x * torch.where(x >= 0, _number(1, x) - half, half)


_ACTIVATIONS = {"silu": _silu, "gelu": _gelu, "gelu_tanh": _gelu_tanh}


def _capped(x: Tensor, cap: float) -> Tensor:
    most = _number(cap, x)
    v = (x / most).abs_()
    e = _exp_of_negative(v + v)
    tanh = (_number(1, x) - e) / (e + 1.0)
    return torch.where(x < 0, -tanh, tanh) * most
