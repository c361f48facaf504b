"""The integer model in torch, on a CPU or a CUDA device: the integers of `reference.py` for many positions.

Matrix products run in float32, or in int8 with int32 sums where the device has such a product; all else is
integer tensor arithmetic. A float32 product is exact in any order of summation: |activation| <= 127,
|w| <= 63 and K <= 2096 keep every partial sum below 2^24, provided that nothing is accumulated in fewer bits
than float32 has. So reduced precision is switched off while products run, whatever the caller chose.

The bounds of all values are those of `reference.py`. Nothing here is differentiable.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lmcodec.errors import ConfigError, Unsupported
from lmcodec.lm import tables as shared_tables
from lmcodec.lm import torch_device
from lmcodec.lm.decisions import LOGIT_BITS
from lmcodec.lm.recurrent import reference, tables
from lmcodec.lm.recurrent.model import IntegerModel, Linear
from lmcodec.lm.recurrent.reference import ACTIVATION_MAX, NORM_EPS, STREAM_MAX

PRODUCTS = ("auto", "float32", "int8")
# What CUDA's int8 product asks for: more than 16 rows, and columns by eights.
_INT8_ROWS, _INT8_MULTIPLE = 32, 8


@dataclass
class _StepBuffers:
    """What steps read and write, in places that do not change: a captured graph knows no others.

    Attributes:
        given: (B,) int64 tokens.
        h: (L, B, R) int32.
        replay: of steps.
    """

    given: Tensor
    h: Tensor
    replay: torch_device.Replay


@dataclass
class TorchState:
    """Recurrent states of B streams.

    Attributes:
        h: (L, B, R) int32 on the network's device, steps of 2^-17. Replaced, never written into.
        buffers: of steps; None before the first one.
    """

    h: Tensor
    buffers: _StepBuffers | None = field(default=None, repr=False, compare=False)

    def copy(self) -> TorchState:
        """A state of its own."""
        return TorchState(self.h.clone())


class TorchNetwork:
    """An integer model on a device.

    Args:
        model: what to run.
        device: "cpu", "cuda" or "cuda:n".
        products: "float32", "int8", or "auto": int8 on a CUDA device that can, else float32.
        capture: take steps as a captured graph, on a CUDA device.

    Attributes:
        products: which of the two was taken.

    Raises:
        ConfigError: there is no such device, or it has no int8 product and was asked for one.
    """

    def __init__(
        self,
        model: IntegerModel,
        device: str | torch.device = "cpu",
        products: str = "auto",
        *,
        capture: bool = True,
    ) -> None:
        self.model = model
        self._capture = capture
        self.device = torch_device.find(device)
        self.products = _products(products, self.device)
        self._tables = {
            name: torch.tensor(table, dtype=torch.int64, device=self.device)
            for name, table in (
                ("decay", tables.decay()),
                ("input_scale", tables.input_scale()),
                ("relu2", tables.relu2()),
                ("rsqrt", tables.rsqrt()),
                ("exp2", shared_tables.exp2()),
            )
        }
        self._powers = torch.tensor([1 << k for k in range(63)], dtype=torch.int64, device=self.device)
        self._start = torch.tensor(model.start, dtype=torch.int32, device=self.device)  # (2, L, R)
        self._embed = torch.tensor(model.embed.weight, dtype=torch.int8, device=self.device)
        self._embed_multiplier = _column(model.embed.multiplier, self.device)
        self._linear = {
            name: _TorchLinear(linear, self.device, self.products)
            for name, linear in model.tensors().items()
            if name != "embed"
        }

    def start(self, cut: np.ndarray) -> TorchState:
        """The states before the first token of B streams.

        Args:
            cut: (B,) bool, whether a stream begins in the middle of a document.
        """
        index = torch.tensor(np.asarray(cut, np.int64), device=self.device)
        return TorchState(self._start[index].transpose(0, 1).contiguous())

    def step(self, tokens: np.ndarray | Tensor, state: TorchState) -> Tensor:
        """Logits of the next tokens.

        Args:
            tokens: (B,) integers, 0 <= token < V + 2.
            state: of B streams; moves on by one token.

        Returns:
            (B, V) int32 logits on the network's device, steps of 2^-8 of a binary logarithm.
        """
        with torch.no_grad(), torch_device.exact(self.device):
            b = state.buffers
            if b is None:
                given = torch.zeros(len(tokens), dtype=torch.int64, device=self.device)
                replay = torch_device.Replay(self.device, self._capture)
                b = state.buffers = _StepBuffers(given, torch.empty_like(state.h), replay)
            b.given.copy_(_as_tensor(tokens))
            b.h.copy_(state.h)
            logits = b.replay(lambda: self.one_step(b.given, b.h))
            state.h = b.h.clone()
            return logits

    def one_step(self, given: Tensor, h: Tensor) -> Tensor:
        """What a step does on the device, without a look at what it computes.

        Args:
            given: (B,) int64 tokens.
            h: (L, B, R) int32 states. Written into.

        Returns:
            (B, V) int32 logits.
        """
        state = TorchState(h)
        logits = self._sequence(given[None], state)[0]
        h.copy_(state.h)
        return logits

    def sequence(self, tokens: np.ndarray | Tensor, state: TorchState) -> Tensor:
        """Logits at T positions of B streams: what T calls of `step` give.

        Args:
            tokens: (T, B) integers, 0 <= token < V + 2, T >= 1.
            state: of B streams; moves on by T tokens.

        Returns:
            (T, B, V) int32 logits on the network's device. Making one takes some 20 bytes.
        """
        with torch.no_grad(), torch_device.exact(self.device):
            return self._sequence(_as_tensor(tokens).to(self.device, torch.int64), state)

    def _sequence(self, tokens: Tensor, state: TorchState) -> Tensor:
        n_channel = self.model.config.recurrent
        linear = self._linear
        row = self._embed[tokens].to(torch.int64)  # (T, B, D)
        x = _shift(row * self._embed_multiplier[tokens][..., None], self.model.embed.shift).to(torch.int32)
        states = []
        for i, layer in enumerate(self.model.layers):
            p = linear[f"layers.{i}.in"](self._normalise(x)).clamp_(-ACTIVATION_MAX, ACTIVATION_MAX)
            z, v, o = p.split(n_channel, dim=-1)  # each (T, B, R)
            h = self._recur(z, v, state.h[i])
            states.append(h[-1])
            gated = _shift(h * self._table("decay", o, -127), 29).clamp_(-ACTIVATION_MAX, ACTIVATION_MAX)
            x = _add(x, linear[f"layers.{i}.out"](gated))
            if layer.up is not None:
                m = linear[f"layers.{i}.up"](self._normalise(x)).clamp_(0, ACTIVATION_MAX)
                x = _add(x, linear[f"layers.{i}.down"](self._table("relu2", m)))
        state.h = torch.stack(states).to(torch.int32)
        return linear["head"](self._normalise(x))

    def _table(self, name: str, index: Tensor, first: int = 0) -> Tensor:
        """Entries of a table whose first one stands for `first`, int64."""
        return self._tables[name][index.to(torch.int64) - first]

    def _normalise(self, x: Tensor) -> Tensor:
        """RMS norm of (..., D) int32: (..., D) int64, |n| <= 127."""
        dim = x.shape[-1]
        wide = x.to(torch.int64)
        s = (wide * wide).sum(dim=-1) + NORM_EPS * dim
        bits = torch.searchsorted(self._powers, s, right=True)  # exact, where a float64 would round
        e = (bits - 31) & ~1
        m = (s >> e.clamp(min=0)) << (-e).clamp(min=0)
        root = self._table("rsqrt", m >> 18, 4096)
        factor = (root * tables.norm_scale(dim) + 128) >> 8
        shift = (29 + (e >> 1))[..., None]
        half = torch.ones_like(shift) << (shift - 1)
        return ((wide * factor[..., None] + half) >> shift).clamp_(-ACTIVATION_MAX, ACTIVATION_MAX)

    def _recur(self, z: Tensor, v: Tensor, h: Tensor) -> Tensor:
        """(T, B, R) int64 states of the recurrence over T steps from (B, R)."""
        a = self._table("decay", z, -127)
        states = (self._table("input_scale", z, -127) * v << 12) + (1 << 15)
        h = h.to(torch.int64)
        for t in range(len(states)):
            h = states[t].addcmul_(a[t], h).bitwise_right_shift_(16)
        return states

    def frequencies(self, logits: Tensor) -> Tensor:
        """Frequencies of the tokens: 2^24 for the likeliest, 1 at least.

        Args:
            logits: (..., V) int32 on the network's device.

        Returns:
            (..., V) int32.
        """
        below = logits.amax(dim=-1, keepdim=True) - logits  # < 2^30
        shift = (below >> LOGIT_BITS).clamp_(max=31)
        return (self._table("exp2", below & 255) >> shift).clamp_(min=1).to(torch.int32)

    def known_answer(self) -> str:
        """This device's answer to the self-test; `reference.compute_known_answer` gives the right one."""
        state = self.start(np.array([False, True]))
        freq = self.frequencies(self.sequence(reference.known_tokens(self.model), state))
        return reference.known_answer(freq.cpu().numpy(), reference.State(state.h.cpu().numpy()))

    def self_test(self, known: str) -> None:
        """Refuse to go on if the device answers otherwise than the model's definition.

        Args:
            known: the model's known answer, 64 hexadecimal digits.

        Raises:
            Unsupported: the answers differ.
        """
        answer = self.known_answer()
        if answer != known:
            raise Unsupported(
                f"torch {torch.__version__} on {self.device} computes model {self.model.model_id} wrong: "
                f"its self-test gives {answer[:16]}, expected {known[:16]}; use another backend"
            )


class _TorchLinear:
    """A matrix product and its requantisation: (..., K) integers, |u| <= 127, to (..., N) int32."""

    def __init__(self, linear: Linear, device: torch.device, products: str) -> None:
        self.n, self.k = linear.weight.shape
        self.int8 = products == "int8"
        if self.int8:
            # Zeros for padding change no sum; the transpose is a view, the layout that CUDA's product wants.
            padded = np.zeros((_up(self.n), _up(self.k)), np.int8)
            padded[: self.n, : self.k] = linear.weight
            self.weight = torch.tensor(padded, dtype=torch.int8, device=device).t()  # (K', N')
        else:
            self.weight = torch.tensor(linear.weight, dtype=torch.float32, device=device).t()  # (K, N)
        # Scaled bias and half of the rounding shift: below 2^40 + 2^39.
        multiplier = linear.multiplier.astype(np.int64)
        offset = np.full(self.n, 1 << (linear.shift - 1), np.int64)
        if linear.bias is not None:
            offset += linear.bias * multiplier
        self.multiplier, self.offset = _column(multiplier, device), _column(offset, device)
        self.shift = linear.shift  # >= 12

    def __call__(self, u: Tensor) -> Tensor:
        flat = u.reshape(-1, self.k)
        if self.int8:
            padded = flat.new_zeros((max(_up(len(flat)), _INT8_ROWS), len(self.weight)), dtype=torch.int8)
            padded[: len(flat), : self.k] = flat
            sums = torch._int_mm(padded, self.weight)[: len(flat), : self.n]
        else:
            sums = torch.mm(flat.to(torch.float32), self.weight)
        scaled = torch.addcmul(self.offset, sums.to(torch.int64), self.multiplier)
        return scaled.bitwise_right_shift_(self.shift).to(torch.int32).view(*u.shape[:-1], self.n)


def _as_tensor(tokens: np.ndarray | Tensor) -> Tensor:
    """A copy of an array: torch warns of those that are read-only."""
    return torch.from_numpy(tokens.astype(np.int64)) if isinstance(tokens, np.ndarray) else tokens


def _up(size: int) -> int:
    """The next multiple of what an int8 product's sizes must be."""
    return -(-size // _INT8_MULTIPLE) * _INT8_MULTIPLE


def _column(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.tensor(values.astype(np.int64), dtype=torch.int64, device=device)


def _add(x: Tensor, y: Tensor) -> Tensor:
    """Residual stream x plus y, held within its bounds: int32."""
    return (x + y).clamp_(-STREAM_MAX, STREAM_MAX)


def _shift(value: Tensor, shift: int) -> Tensor:
    """value / 2^shift to the nearest, halves up."""
    return value if shift == 0 else (value + (1 << (shift - 1))) >> shift


def _products(products: str, device: torch.device) -> str:
    """Which of "float32" and "int8" runs on a device."""
    if products not in PRODUCTS:
        raise ConfigError(f"products {products!r}, expected one of {', '.join(PRODUCTS)}")
    if products == "float32" or (products == "auto" and device.type != "cuda"):
        return "float32"
    probe = Linear(np.eye(9, dtype=np.int8), None, np.full(9, 1 << 12, np.uint16), 12)
    try:
        _TorchLinear(probe, device, "int8")(torch.full((1, 9), 127, device=device))
    except (AttributeError, RuntimeError) as error:  # an older torch; a device without int8 products
        if products == "int8":
            reason = str(error).splitlines()[0]
            raise ConfigError(f"device {device} has no int8 matrix product: {reason}") from None
        return "float32"
    return "int8"
