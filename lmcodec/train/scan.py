"""The recurrence h_t = a_t h_{t-1} + v_t over a window, with its gradient.

On the CPU a loop over time, one fused operation a step: it costs little beside the matrix products. On CUDA a
Triton kernel that loads a tile of many steps at once, so that enough loads are in flight, scans it in
registers and carries the last state into the next tile. Where Triton is missing or fails its probe, a scan in
plain torch that works on all chunks of the window at the same time. Time comes first in all layouts, so that
a step is one contiguous slice. These are float kernels for training, equal up to rounding; inference rounds
at every step and has its own integer definition.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lmcodec.errors import reason_of

try:
    import triton
    import triton.language as tl
except ImportError:  # a CPU build of torch
    triton = None


def scan_loop(a: Tensor, v: Tensor, h0: Tensor) -> Tensor:
    """(T, N...) states by a loop over time: the definition."""
    h = torch.empty_like(v)
    before = h0
    for t in range(v.shape[0]):
        torch.addcmul(v[t], a[t], before, out=h[t])
        before = h[t]
    return h


def scan_loop_backward(a: Tensor, grad: Tensor) -> Tensor:
    """(T, N...) gradient of the loss by v: g_t = grad_t + a_{t+1} g_{t+1}."""
    g = torch.empty_like(grad)
    g[-1] = grad[-1]
    for t in range(grad.shape[0] - 2, -1, -1):
        torch.addcmul(grad[t], a[t + 1], g[t + 1], out=g[t])
    return g


def scan_rounded(a: Tensor, v: Tensor, h0: Tensor, step: float) -> Tensor:
    """(T, N...) float64 states by a loop that rounds every state to a multiple of `step`, as inference does.

    In float64 the product of a 16-bit decay and a 32-bit state is exact. No gradient.
    """
    h = torch.empty_like(v, dtype=torch.float64)
    before = h0.double()
    for t in range(v.shape[0]):
        before = torch.floor((a[t].double() * before + v[t].double()) / step + 0.5) * step
        h[t] = before
    return h


def scan_chunked(a: Tensor, v: Tensor, h0: Tensor) -> Tensor:
    """(T, N...) states, like `scan_loop`, in about 3 sqrt(T) operations instead of T.

    Time is cut into chunks. One loop over the steps of a chunk serves all chunks at the same time and leaves
    for each step the state from a chunk that begins with zeros, and the product of the decays so far; a loop
    over chunks then carries the state from one to the next.
    """
    n_position = v.shape[0]
    n_step = max(math.isqrt(n_position), 1)
    n_chunk = -(-n_position // n_step)
    padding = n_chunk * n_step - n_position
    if padding:
        a = torch.cat((a, torch.zeros_like(a[:1]).expand(padding, *a.shape[1:])))
        v = torch.cat((v, torch.zeros_like(v[:1]).expand(padding, *v.shape[1:])))
    shape = (n_chunk, n_step, *v.shape[1:])
    a, v = a.reshape(shape), v.reshape(shape)
    local, decay = torch.empty_like(v), torch.empty_like(a)
    local[:, 0], decay[:, 0] = v[:, 0], a[:, 0]
    for t in range(1, n_step):
        torch.addcmul(v[:, t], a[:, t], local[:, t - 1], out=local[:, t])
        torch.mul(a[:, t], decay[:, t - 1], out=decay[:, t])
    carry = torch.empty_like(v[:, 0])  # (n_chunk, N...), the state before each chunk
    carry[0] = h0
    for c in range(1, n_chunk):
        torch.addcmul(local[c - 1, -1], decay[c - 1, -1], carry[c - 1], out=carry[c])
    h = local.addcmul_(decay, carry.unsqueeze(1))
    return h.reshape(n_chunk * n_step, *h.shape[2:])[:n_position]


def scan_chunked_backward(a: Tensor, grad: Tensor) -> Tensor:
    """(T, N...) gradient of the loss by v, like `scan_loop_backward`: the scan backwards in time."""
    decay = torch.cat((a[1:], torch.zeros_like(a[:1]))).flip(0)
    return scan_chunked(decay, grad.flip(0), torch.zeros_like(grad[0])).flip(0)


if triton is not None:

    @triton.jit
    def _compose(decay, state, next_decay, next_state):
        """Two stretches of h -> decay h + state, one after the other."""
        return decay * next_decay, next_decay * state + next_state

    # Pointers move by a tile's channels: an index over all positions could pass 2^31.
    @triton.jit
    def _forward_kernel(a, v, h0, h, n_position, n_channel, STEPS: tl.constexpr, BLOCK: tl.constexpr):
        channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        step = tl.arange(0, STEPS)
        offset = step[:, None] * n_channel + channel[None, :]  # (STEPS, BLOCK)
        inside = channel < n_channel
        carry = tl.load(h0 + channel, mask=inside, other=0.0)
        for first in range(0, n_position, STEPS):
            mask = inside[None, :] & (first + step < n_position)[:, None]
            decay = tl.load(a + offset, mask=mask, other=0.0)
            state = tl.load(v + offset, mask=mask, other=0.0)
            decay, state = tl.associative_scan((decay, state), 0, _compose)
            state += decay * carry[None, :]
            tl.store(h + offset, state, mask=mask)
            # The tile's last step, picked without indexing; only the last tile is short, and it has no next.
            carry = tl.sum(tl.where((step == STEPS - 1)[:, None], state, 0.0), axis=0)
            a += STEPS * n_channel
            v += STEPS * n_channel
            h += STEPS * n_channel

    # Backwards in time: a, grad and g point at the last step, and step s of a tile is s steps before it.
    @triton.jit
    def _backward_kernel(a, grad, g, n_position, n_channel, STEPS: tl.constexpr, BLOCK: tl.constexpr):
        channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        step = tl.arange(0, STEPS)
        offset = channel[None, :] - step[:, None] * n_channel  # (STEPS, BLOCK)
        inside = channel < n_channel
        carry = tl.zeros([BLOCK], dtype=tl.float32)
        for first in range(0, n_position, STEPS):
            mask = inside[None, :] & (first + step < n_position)[:, None]
            # The decay of the step after in time; the last one in time has none.
            later = mask & (first + step > 0)[:, None]
            decay = tl.load(a + n_channel + offset, mask=later, other=0.0)
            state = tl.load(grad + offset, mask=mask, other=0.0)
            decay, state = tl.associative_scan((decay, state), 0, _compose)
            state += decay * carry[None, :]
            tl.store(g + offset, state, mask=mask)
            carry = tl.sum(tl.where((step == STEPS - 1)[:, None], state, 0.0), axis=0)
            a -= STEPS * n_channel
            grad -= STEPS * n_channel
            g -= STEPS * n_channel


# A tile of 32 steps x 64 channels has 16 KB of loads in flight in each program.
_STEPS, _BLOCK, _WARPS = 32, 64, 4


def scan_triton(a: Tensor, v: Tensor, h0: Tensor) -> Tensor:
    """(T, N...) states, like `scan_loop`, by the Triton kernel."""
    h = torch.empty_like(v)
    n_channel = v[0].numel()
    grid = (triton.cdiv(n_channel, _BLOCK),)
    _forward_kernel[grid](a, v, h0, h, v.shape[0], n_channel, STEPS=_STEPS, BLOCK=_BLOCK, num_warps=_WARPS)
    return h


def scan_triton_backward(a: Tensor, grad: Tensor) -> Tensor:
    """(T, N...) gradient of the loss by v, like `scan_loop_backward`, by the Triton kernel."""
    g = torch.empty_like(grad)
    n_channel = grad[0].numel()
    grid = (triton.cdiv(n_channel, _BLOCK),)
    _backward_kernel[grid](
        a[-1], grad[-1], g[-1], grad.shape[0], n_channel, STEPS=_STEPS, BLOCK=_BLOCK, num_warps=_WARPS
    )
    return g


_Scan = Callable[[Tensor, Tensor, Tensor], Tensor]
_ScanBackward = Callable[[Tensor, Tensor], Tensor]

SCANS: dict[str, tuple[_Scan, _ScanBackward]] = {
    "loop": (scan_loop, scan_loop_backward),
    "chunked": (scan_chunked, scan_chunked_backward),
    "triton": (scan_triton, scan_triton_backward),
}


def probe_scan(device: torch.device) -> tuple[str, str]:
    """The fastest scan that works on `device`, by name, and why not a faster one ("" if it is the fastest).

    Triton's kernels are compiled and compared with the loop on a small window.
    """
    if device.type != "cuda":
        return "loop", ""
    if triton is None:
        return "chunked", "Triton is not installed"
    try:
        generator = torch.Generator().manual_seed(1)
        shape = (_STEPS + 5, 3, 50)
        a = torch.rand(shape, generator=generator)
        v, grad = (torch.randn(shape, generator=generator) for _ in range(2))
        h0 = torch.randn(shape[1:], generator=generator)
        there = [t.to(device) for t in (a, v, h0, grad)]
        h = scan_triton(there[0], there[1], there[2]).cpu()
        g = scan_triton_backward(there[0], there[3]).cpu()
        worst = max(
            float((h - scan_loop(a, v, h0)).abs().max()), float((g - scan_loop_backward(a, grad)).abs().max())
        )
    except Exception as error:
        return "chunked", f"Triton's scan failed: {reason_of(error)}"
    if not worst <= 1e-4:
        return "chunked", f"Triton's scan differs from the loop by {worst:.3g}"
    return "triton", ""


_chosen: dict[str, str] = {}  # device type -> scan


def use_scan(device_type: str, name: str) -> None:
    """Let windows on devices of that type be scanned by the entry `name` of `SCANS`."""
    _chosen[device_type] = name


def _of(device: torch.device) -> tuple[_Scan, _ScanBackward]:
    if device.type not in _chosen:
        _chosen[device.type] = probe_scan(device)[0]
    return SCANS[_chosen[device.type]]


class _LinearScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a: Tensor, v: Tensor, h0: Tensor) -> Tensor:
        a, v, h0 = a.contiguous(), v.contiguous(), h0.contiguous()
        h = _of(v.device)[0](a, v, h0)
        ctx.save_for_backward(a, h, h0)
        return h

    @staticmethod
    def backward(ctx, grad: Tensor):
        a, h, h0 = ctx.saved_tensors
        g = _of(grad.device)[1](a, grad.contiguous())
        grad_a = torch.empty_like(a)
        torch.mul(g[0], h0, out=grad_a[0])
        torch.mul(g[1:], h[:-1], out=grad_a[1:])
        return grad_a, g, a[0] * g[0]


def linear_scan(a: Tensor, v: Tensor, h0: Tensor) -> Tensor:
    """States h_t = a_t h_{t-1} + v_t.

    Args:
        a: (T, B, R) float32, decays.
        v: (T, B, R) float32, inputs.
        h0: (B, R) float32, state before the first step.

    Returns:
        (T, B, R) float32 states after each step; differentiable in all three.
    """
    result: Tensor = _LinearScan.apply(a, v, h0)
    return result
