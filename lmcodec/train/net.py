"""The network, as it is trained: float master weights, with the integer model's rounding in the forward pass.

A stack of layers over a residual stream x, (T, B, D) float32, time first. Every layer is a gated linear
recurrence (the RG-LRU / minGRU family: gates from the input alone) and a relu² MLP:

    u = mix(norm(x))                      norm: RMS, no gain; mix: token shift, per channel
    z, v, o = W_in u + b_in
    a = sigmoid(z);  h_t = a_t h_{t-1} + sqrt(1 - a_t²) v_t;  x += W_out (h · sigmoid(o))
    m = W_up mix(norm(x)) + b_up;                             x += W_down relu(m)²

and logits = W_head norm(x) + b_head.

**Quantisation.** Every tensor that enters a matrix product, and every argument of a gate, is an integer times
a static power of two (the steps below), clipped to 8 bits; weights are integers |w| <= 63 times one scale per
output channel. The steps are part of the definition: nothing is calibrated, the weights learn to use the
range. Rounding is to the nearest, halves up, as a rounding shift does it. Gradients pass rounding unchanged
and stop where a value is clipped.

| value | step | range | integer definition |
|---|---|---|---|
| normalised input u, before and after mixing | 2^-4 | ±127 | rsqrt by table, rounding shift |
| gate argument z, o | 2^-4 | ±127 | a, sqrt(1-a²), sigmoid(o): tables of 255 entries, step 2^-16 |
| recurrence input v | 2^-5 | ±127 | |
| state h | 2^-17 | int32 | (a h + s v 2^12 + 2^15) >> 16 at every step, products in int64 |
| recurrence output h·sigmoid(o) | 2^-4 | ±127 | |
| m | 2^-5 | 0..127 | relu² = (m² + 64) >> 7, step 2^-3 |
| sum of a product, int32, that becomes z, v, o, m, a logit or a part of x | | | bias added, then times an
integer multiplier per output channel, rounding shift |
| residual stream x, embeddings | 2^-12 | int32 | its last bit is far below what the norm's step resolves |

Training computes in float what the last two rows, the norm's rsqrt and the state round: their steps are two
orders finer than those of the 8-bit values. `round_state` measures what rounding the state costs. The
operands of a product on the activations' side are exact in bfloat16 (8 significant bits); a rounded weight,
an integer times a scale, is rounded once more in bfloat16 (rms 0.03 of an integer step) and not in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmcodec.errors import ConfigError
from lmcodec.train.net_config import ATTENTION_HEAD, NetConfig
from lmcodec.train.scan import linear_scan, scan_rounded

WEIGHT_MAX = 63
NORM_STEP = GATE_STEP = OUTPUT_STEP = 2.0**-4
INPUT_STEP = HIDDEN_STEP = 2.0**-5
# Of the state, 12 bits below the input's last one. |h| <= 4 sqrt((1+a)/(1-a)) <= 4 * 75 for the largest gate
# argument, 127/16: below 2^9, so that a state has at most 9 + 17 bits and fits an int32.
STATE_STEP = 2.0**-17
TABLE_STEP = 2.0**-16  # of decays, input scales and output gates
NORM_EPS = 1e-6
SCALE_RANGE = 256  # largest scale of a tensor's rows over the smallest


def round_to(x: Tensor, step: float, low: int, high: int) -> Tensor:
    """x rounded (halves up, like a rounding shift) to a multiple of `step`, clipped to [low, high] steps.

    The gradient passes straight through rounding and stops where x is clipped.
    """
    x = x.clamp(low * step, high * step)
    return x + ((x * (1 / step) + 0.5).floor() * step - x).detach()


@dataclass(frozen=True)
class WeightRounding:
    """How weights are rounded: to integers |i| <= 63 times one scale per row.

    Attributes:
        levels: scale = largest weight of the row / levels, 1 to 63; 0 for weights as they are.
        step: where above 0, scale = step times the row's root mean square, or the largest weight / 63 if
            that is more: the integers' entropy, which is what the model file stores, then depends on `step`
                alone
            (about 2.05 - log2(step) bits for normal weights).
        table_step: likewise for the embedding; 0 for the same.
    """

    levels: int = 0
    step: float = 0.0
    table_step: float = 0.0

    def scale(self, w: Tensor, name: str) -> Tensor:
        """Scales (N, 1) of a tensor (N, K) called `name`; above 0."""
        scale = self.row_scale(w, name)
        return self.bounded(scale, scale.max())

    def row_scale(self, w: Tensor, name: str) -> Tensor:
        """Scales (N, 1) that each row of a tensor (N, K) called `name` would have by itself."""
        largest = w.abs().amax(dim=1, keepdim=True)
        step = self.table_step or self.step if name in TABLES else self.step
        if step:
            rms = w.square().mean(dim=1, keepdim=True).sqrt_()
            return torch.maximum(rms.mul_(step), largest.div_(WEIGHT_MAX))
        return largest.div_(self.levels)

    @staticmethod
    def bounded(scale: Tensor, largest: Tensor) -> Tensor:
        """Scales (N, 1) with their ratio to the `largest` of the tensor bounded.

        A multiplier of 16 bits serves all rows: those of far smaller weights are rounded coarser, which still
        errs less than the rounding of the other rows does.
        """
        return torch.maximum(scale, largest / SCALE_RANGE).clamp_min_(1e-12)


TABLES = ("embed", "bigram")  # looked up, never multiplied: rounding them costs no sum of many errors


class _RoundWeights(torch.autograd.Function):
    """Weights of several tensors, rounded in one go; gradients pass straight through."""

    @staticmethod
    def forward(ctx, names: tuple[str, ...], rounding: WeightRounding, dtype: torch.dtype, *ws: Tensor):
        ctx.dtypes = [w.dtype for w in ws]
        if rounding.levels and ws[0].is_cuda:
            return tuple(rounded_together(ws, names, rounding, dtype))
        return tuple(rounded(w, name, rounding, dtype) for w, name in zip(ws, names, strict=True))

    @staticmethod
    def backward(ctx, *grads: Tensor):
        return None, None, None, *(g.to(t) for g, t in zip(grads, ctx.dtypes, strict=True))


def rounded(w: Tensor, name: str, rounding: WeightRounding, dtype: torch.dtype) -> Tensor:
    """w (N, K), the tensor called `name`, as `rounding` says."""
    if not rounding.levels:
        return w.to(dtype)
    scale = rounding.scale(w, name)
    return (w / scale).round_().mul_(scale).to(dtype)


def rounded_together(
    ws: Sequence[Tensor], names: Sequence[str], rounding: WeightRounding, dtype: torch.dtype
) -> list[Tensor]:
    """What `rounded` gives for each tensor, in a dozen operations for all that have rows of one length.

    A GPU starts an operation in the time that it takes to round a small matrix.
    """
    groups: dict[tuple[int, bool], list[int]] = {}
    for i, (w, name) in enumerate(zip(ws, names, strict=True)):
        groups.setdefault((w.shape[1], name in TABLES), []).append(i)
    result: list[Tensor] = [ws[0]] * len(ws)
    for members in groups.values():
        sizes = tuple(ws[i].shape[0] for i in members)
        rows = torch.cat([ws[i] for i in members])
        scale = rounding.row_scale(rows, names[members[0]])
        number = _tensor_of_row(sizes, str(rows.device))
        largest = torch.zeros(len(sizes), device=rows.device).scatter_reduce_(
            0, number, scale.squeeze(1), "amax"
        )
        scale = rounding.bounded(scale, largest[number].unsqueeze(1))
        parts = (rows / scale).round_().mul_(scale).to(dtype).split(sizes)
        for i, part in zip(members, parts, strict=True):
            result[i] = part
    return result


@cache
def _tensor_of_row(sizes: tuple[int, ...], device: str) -> Tensor:
    """(sum of sizes,) int64: for each row of tensors laid one below the other, the tensor's number."""
    return torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).to(device)


def _quantised(x: Tensor, step: float, low: int, high: int, quantise: bool) -> Tensor:
    return round_to(x, step, low, high) if quantise else x


def add_norm(x: Tensor, y: Tensor, quantise: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Residual sum x + y and its RMS norm, rounded: (T, B, D) float32 and (T, B, D) `dtype`."""
    x = x + y
    n = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + NORM_EPS)
    return x, _quantised(n, NORM_STEP, -127, 127, quantise).to(dtype)


def add_norm_backward(x: Tensor, grad_x: Tensor, grad_q: Tensor, quantise: bool) -> Tensor:
    """Gradient by x (and y) of `add_norm`, from its first output and the gradients of both."""
    r = torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + NORM_EPS)
    n = x * r
    g = grad_q.float()
    if quantise:
        g = torch.where(n.abs() <= 127 * NORM_STEP, g, 0.0)
    return grad_x + r * (g - n * (g * n).mean(dim=-1, keepdim=True))


def shift_mix(q: Tensor, before: Tensor, mix: Tensor, keep: Tensor, quantise: bool) -> Tensor:
    """Mix of q with the token before it; mix in [0, 1] keeps the result in q's range."""
    a = q.float()
    return _quantised(a + mix * (before.float() * keep - a), NORM_STEP, -127, 127, quantise).to(q.dtype)


def shift_mix_backward(
    grad: Tensor, grad_next: Tensor, q: Tensor, before: Tensor, mix: Tensor, keep: Tensor, keep_next: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradient by q, and by mix before the sum over positions: both (T, B, D)."""
    g = grad.float()
    grad_q = g - mix * (g - grad_next.float() * keep_next)
    return grad_q.to(q.dtype), (g * (before.float() * keep - q.float())).to(q.dtype)


def gates(p: Tensor, keep: Tensor, quantise: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Decay, input and output gate of the recurrence from its projections p (T, B, 3R): each (T, B, R)."""
    z, v, o = p.float().chunk(3, dim=-1)
    z = _quantised(z, GATE_STEP, -127, 127, quantise)
    v = _quantised(v, INPUT_STEP, -127, 127, quantise)
    o = _quantised(o, GATE_STEP, -127, 127, quantise)
    a = torch.sigmoid(z)
    s, g = torch.sqrt((1 - a) * (1 + a) + 1e-7), torch.sigmoid(o)
    if quantise:  # entries of the tables
        a, s, g = (round_to(t, TABLE_STEP, 0, 1 << 16) for t in (a, s, g))
    return a * keep, s * v, g


def gated(h: Tensor, g: Tensor, quantise: bool, dtype: torch.dtype) -> Tensor:
    """Output of the recurrence."""
    return _quantised(h * g, OUTPUT_STEP, -127, 127, quantise).to(dtype)


def relu2(m: Tensor, quantise: bool, dtype: torch.dtype) -> Tensor:
    """relu(m)², in the integer model's steps."""
    m = m.float()
    if not quantise:
        return F.relu(m).square().to(dtype)
    m = round_to(m, HIDDEN_STEP, 0, 127)
    return round_to(m.square(), 2.0**-3, 0, 127).to(dtype)


class Elementwise:
    """The work between the products, as it is or compiled into fused kernels.

    Compiled or not, the values are the same up to float rounding; compiling needs a C++ compiler on the CPU,
    Triton on CUDA.
    """

    def __init__(self, compiled: bool) -> None:
        self.compiled = compiled
        wrap: Callable[[Any], Any] = torch.compile(dynamic=False) if compiled else (lambda f: f)
        self.add_norm = wrap(add_norm)
        self.add_norm_backward = wrap(add_norm_backward)
        self.shift_mix = wrap(shift_mix)
        self.shift_mix_backward = wrap(shift_mix_backward)
        self.gates = wrap(gates)
        self.gated = wrap(gated)
        self.relu2 = wrap(relu2)

    def normalise(
        self,
        x: Tensor,
        y: Tensor,
        mix: Tensor | None,
        last: Tensor | None,
        keep: Tensor,
        quantise: bool,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Residual sum, RMS norm, token shift.

        Args:
            x: (T, B, D) float32, residual stream.
            y: (T, B, D), output of the sublayer before, which is added to it.
            mix: (D,) share of the token before, or None.
            last: (B, D), normalised input of the token before the first; None without a shift.
            keep: (T, B, 1), 0 where a piece begins, else 1.
            quantise: whether to round.
            dtype: of the mixed input.

        Returns:
            (T, B, D) residual stream, (T, B, D) mixed input, (B, D) normalised input of the last token.
        """
        x, q = _AddNorm.apply(x, y, self, quantise, dtype)
        u = (
            q
            if mix is None or last is None
            else _ShiftMix.apply(q, mix, last.to(dtype), keep, self, quantise)
        )
        return x, u, q[-1].detach()


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, ops: Elementwise, quantise: bool, dtype: torch.dtype):
        total, q = ops.add_norm(x, y, quantise, dtype)
        ctx.save_for_backward(total)
        ctx.ops, ctx.quantise, ctx.dtypes = ops, quantise, (x.dtype, y.dtype)
        return total, q

    @staticmethod
    def backward(ctx, grad_x: Tensor, grad_q: Tensor):
        (total,) = ctx.saved_tensors
        grad = ctx.ops.add_norm_backward(total, grad_x, grad_q, ctx.quantise)
        return grad.to(ctx.dtypes[0]), grad.to(ctx.dtypes[1]), None, None, None


class _ShiftMix(torch.autograd.Function):
    """The token shift, with views of padded copies in place of concatenations inside the fused kernels."""

    @staticmethod
    def forward(ctx, q, mix, last, keep, ops: Elementwise, quantise: bool):
        padded = torch.cat((last.unsqueeze(0), q))
        ctx.save_for_backward(padded, mix, keep)
        ctx.ops = ops
        return ops.shift_mix(padded[1:], padded[:-1], mix, keep, quantise)

    @staticmethod
    def backward(ctx, grad: Tensor):
        padded, mix, keep = ctx.saved_tensors
        g = torch.cat((grad, torch.zeros_like(grad[:1])))
        keep_next = torch.cat((keep[1:], torch.zeros_like(keep[:1])))
        grad_q, grad_mix = ctx.ops.shift_mix_backward(
            g[:-1], g[1:], padded[1:], padded[:-1], mix, keep, keep_next
        )
        return grad_q, grad_mix.sum(dim=(0, 1), dtype=torch.float32), None, None, None, None


class Layer(nn.Module):
    """One recurrence and one MLP. Parameters are float32; shapes in trailing comments."""

    def __init__(self, config: NetConfig, generator: torch.Generator | None) -> None:
        super().__init__()
        d, r, m = config.dim, config.recurrent, config.mlp
        self.w_in = _normal(3 * r, d, d**-0.5, generator)  # (3R, D): z, v, o
        bias = torch.zeros(3 * r)
        # Time constants from 1 to about 500 tokens: sigmoid(-1) = 0.27 .. sigmoid(6) = 0.9975.
        bias[:r] = torch.linspace(-1.0, 6.0, r)
        self.b_in = nn.Parameter(bias)  # (3R,)
        self.w_out = _normal(d, r, 0.1 * r**-0.5, generator)  # (D, R)
        if config.shift:
            self.mix_in = nn.Parameter(torch.linspace(0.0, 0.6, d))  # (D,)
        if m:
            self.w_up = _normal(m, d, d**-0.5, generator)  # (M, D)
            self.b_up = nn.Parameter(torch.zeros(m))  # (M,)
            self.w_down = _normal(d, m, 0.1 * m**-0.5, generator)  # (D, M)
            if config.shift:
                self.mix_up = nn.Parameter(torch.linspace(0.0, 0.6, d))  # (D,)


class Attention(nn.Module):
    """Local multi-query attention over the last `window` tokens of the piece: an experiment, float only."""

    def __init__(self, config: NetConfig, generator: torch.Generator | None) -> None:
        super().__init__()
        d = config.dim
        self.window = config.attention
        self.n_head = d // ATTENTION_HEAD
        width = self.n_head * ATTENTION_HEAD
        self.w_in = _normal(width + 2 * ATTENTION_HEAD, d, d**-0.5, generator)
        self.w_out = _normal(d, width, 0.1 * width**-0.5, generator)
        self.slope = nn.Parameter(torch.linspace(0.0, 2.0, self.n_head))

    def forward(self, u: Tensor, past: Tensor, piece: Tensor) -> tuple[Tensor, Tensor]:
        """u (T, B, D) normalised; past (W, B, 2H) keys and values before; piece (W + T, B) piece numbers."""
        n_position, n_lane, _ = u.shape
        p = F.linear(u, self.w_in)
        width = self.n_head * ATTENTION_HEAD
        q, kv = p[..., :width], torch.cat((past.to(p.dtype), p[..., width:]))
        k, v = kv.chunk(2, dim=-1)
        q = q.view(n_position, n_lane, self.n_head, ATTENTION_HEAD).permute(1, 2, 0, 3)
        k, v = (t.permute(1, 0, 2).unsqueeze(1) for t in (k, v))
        distance = (
            torch.arange(n_position, device=u.device)[:, None]
            + self.window
            - torch.arange(n_position + self.window, device=u.device)[None]
        )
        allowed = (distance >= 0) & (distance < self.window)
        same = piece[self.window :].T[:, :, None] == piece.T[:, None, :]  # (B, T, W + T)
        bias = -F.softplus(self.slope)[:, None, None] * torch.log1p(distance.clamp_min(0).float())
        scores = bias[None].masked_fill(~(allowed[None] & same)[:, None], float("-inf"))
        y = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), scores)
        y = y.permute(2, 0, 1, 3).reshape(n_position, n_lane, width)
        return F.linear(y, self.w_out), kv[-self.window :].detach()


def _normal(n: int, k: int, std: float, generator: torch.Generator | None) -> nn.Parameter:
    if generator is None:  # shapes only
        return nn.Parameter(torch.empty(n, k))
    return nn.Parameter(torch.randn(n, k, generator=generator) * std)


State = dict[str, Tensor]
Weights = dict[str, Tensor]


class Net(nn.Module):
    """The network.

    Args:
        config: its shape.
        seed: of the initial weights.
        compiled: whether to compile the element work into fused kernels.
        allocate: whether to draw initial weights; without, they are undefined (on the device "meta": shapes).
    """

    def __init__(
        self, config: NetConfig, seed: int = 0, compiled: bool = False, allocate: bool = True
    ) -> None:
        super().__init__()
        self.config = config
        generator = torch.Generator().manual_seed(seed) if allocate else None
        self.embed = _normal(config.vocab_size + 2, config.dim, 1.0, generator)  # (V + 2, D)
        if config.bigram:
            self.bigram = nn.Parameter(torch.zeros(config.bigram, config.dim))  # (bigram, D)
        self.layers = nn.ModuleList(Layer(config, generator) for _ in range(config.n_layer))
        if config.attention:
            self.attention = Attention(config, generator)
        self.w_head = _normal(config.vocab_size, config.dim, 0.2 * config.dim**-0.5, generator)  # (V, D)
        self.b_head = nn.Parameter(torch.zeros(config.vocab_size))  # (V,)
        self.ops = Elementwise(compiled)
        self.dtype = torch.float32  # of the products; bfloat16 holds every rounded operand exactly
        self.quantise_activations = False
        self.rounding = WeightRounding()
        self.round_state = False  # as inference does, step by step: slow, no gradient, for measuring its cost

    def quantise(self, activations: bool, rounding: WeightRounding) -> None:
        """Switch the rounding of activations on or off, and choose that of weights.

        Raises:
            ConfigError: if the network has a part without an integer definition.
        """
        if activations and self.config.attention:
            raise ConfigError("model.attention has no integer definition yet: it trains in float only")
        self.quantise_activations = activations
        self.rounding = rounding

    def start(self, n_lane: int, device: torch.device | str = "cpu") -> State:
        """The state before the first token, for B lanes: zeros."""
        config = self.config
        state = {}
        for i in range(config.n_layer):
            state[f"h{i}"] = torch.zeros(n_lane, config.recurrent, device=device)
            if config.shift:
                state[f"in{i}"] = torch.zeros(n_lane, config.dim, device=device)
                if config.mlp:
                    state[f"up{i}"] = torch.zeros(n_lane, config.dim, device=device)
        state["last"] = torch.zeros(n_lane, dtype=torch.int32, device=device)
        if config.attention:
            state["kv"] = torch.zeros(config.attention, n_lane, 2 * ATTENTION_HEAD, device=device)
            state["piece"] = torch.full((config.attention, n_lane), -1, dtype=torch.int32, device=device)
        return state

    def weights(self) -> Weights:
        """The weights that enter products or are looked up, by name, rounded if weights are."""
        names = tuple(
            n for n, p in self.named_parameters() if p.dim() == 2 and not n.startswith("attention.")
        )
        ws = [self.get_parameter(name) for name in names]
        return dict(zip(names, _RoundWeights.apply(names, self.rounding, self.dtype, *ws), strict=True))

    def forward(
        self, inputs: Tensor, begins: Tensor, state: State, weights: Weights | None = None
    ) -> tuple[Tensor, State]:
        """Hidden states for T positions of B lanes.

        Args:
            inputs: (T, B) int32 tokens, `config.bos` or `config.mid` where a piece begins.
            begins: (T, B) bool, where a piece begins.
            state: from `start` or the window before.
            weights: from `weights`, to round them once for several calls.

        Returns:
            (T, B, D) normalised output of the stack, which `logits` takes; the state after the last position.
        """
        config, ops, quantise, dtype = self.config, self.ops, self.quantise_activations, self.dtype
        keep = (~begins).unsqueeze(-1).float()  # (T, B, 1)
        after: State = {"last": inputs[-1].detach()}
        w = self.weights() if weights is None else weights
        y = F.embedding(inputs.long(), w["embed"])
        x = torch.zeros(y.shape, device=y.device)
        if config.bigram:
            before = torch.cat((state["last"].unsqueeze(0), inputs[:-1])).long()
            row = ((before * 0x9E3779B1 + inputs.long() * 0x85EBCA77) & 0xFFFFFFFF) >> 7
            row = torch.where(begins, inputs.long(), row) % config.bigram
            x = F.embedding(row, w["bigram"]).float()
        for i, module in enumerate(self.layers):
            assert isinstance(module, Layer)
            mix = module.mix_in.clamp(0, 1) if config.shift else None
            x, u, last = ops.normalise(x, y, mix, state.get(f"in{i}"), keep, quantise, dtype)
            if config.shift:
                after[f"in{i}"] = last
            p = F.linear(u, w[f"layers.{i}.w_in"], module.b_in.to(dtype))
            a, v, g = ops.gates(p, keep, quantise)
            if self.round_state:
                h = scan_rounded(a, v, state[f"h{i}"], STATE_STEP)
            else:
                h = linear_scan(a, v, state[f"h{i}"])
            after[f"h{i}"] = h[-1].detach()
            y = F.linear(ops.gated(h.float(), g, quantise, dtype), w[f"layers.{i}.w_out"])
            if config.attention and i == config.n_layer // 2:
                x, u, _ = ops.normalise(x, y, None, None, keep, quantise, dtype)
                number = state["piece"][-1] + begins.int().cumsum(0)
                piece = torch.cat((state["piece"], number)).int()
                y, after["kv"] = self.attention(u.float(), state["kv"], piece)
                after["piece"] = piece[-config.attention :]
            if config.mlp:
                mix = module.mix_up.clamp(0, 1) if config.shift else None
                x, u, last = ops.normalise(x, y, mix, state.get(f"up{i}"), keep, quantise, dtype)
                if config.shift:
                    after[f"up{i}"] = last
                m = F.linear(u, w[f"layers.{i}.w_up"], module.b_up.to(dtype))
                y = F.linear(ops.relu2(m, quantise, dtype), w[f"layers.{i}.w_down"])
        _, u, _ = ops.normalise(x, y, None, None, keep, quantise, dtype)
        return u, after

    def head(self, weights: Weights | None = None) -> tuple[Tensor, Tensor]:
        """Weight (V, D) and bias (V,) of the output, rounded if weights are."""
        w = self.weights() if weights is None else weights
        return w["w_head"], self.b_head

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., V) float logits in nats of (..., D) outputs of `forward`."""
        w, b = self.head()
        return F.linear(hidden, w).float() + b

    def n_parameter(self) -> int:
        return sum(p.numel() for p in self.parameters())
