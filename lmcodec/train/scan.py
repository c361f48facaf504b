"""The recurrence h_t = a_t h_{t-1} + v_t over a window, with its gradient.

On the CPU a loop over time, one fused operation a step: it costs little beside the matrix products. On CUDA a
Triton kernel in which a thread owns channels and walks through time; without Triton, the loop. Time comes
first in all layouts, so that a step is one contiguous slice. These are float kernels for training; inference
rounds at every step and has its own integer definition.
"""

from __future__ import annotations

import torch
from torch import Tensor

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


if triton is not None:
    # Pointers move by a step's channels: an index over all positions could pass 2^31.
    @triton.jit
    def _forward_kernel(a, v, h0, h, n_position, n_channel, BLOCK: tl.constexpr):
        channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = channel < n_channel
        state = tl.load(h0 + channel, mask=inside, other=0.0)
        a += channel
        v += channel
        h += channel
        for _ in range(n_position):
            state = tl.load(a, mask=inside, other=0.0) * state + tl.load(v, mask=inside, other=0.0)
            tl.store(h, state, mask=inside)
            a += n_channel
            v += n_channel
            h += n_channel

    # a, grad and g point at the last step.
    @triton.jit
    def _backward_kernel(a, grad, g, n_position, n_channel, BLOCK: tl.constexpr):
        channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = channel < n_channel
        a += channel
        grad += channel
        g += channel
        state = tl.zeros([BLOCK], dtype=tl.float32)
        decay = tl.zeros([BLOCK], dtype=tl.float32)
        for _ in range(n_position):
            state = decay * state + tl.load(grad, mask=inside, other=0.0)
            decay = tl.load(a, mask=inside, other=0.0)
            tl.store(g, state, mask=inside)
            a -= n_channel
            grad -= n_channel
            g -= n_channel


_BLOCK = 64


def _forward(a: Tensor, v: Tensor, h0: Tensor) -> Tensor:
    if triton is None or not v.is_cuda:
        return scan_loop(a, v, h0)
    h = torch.empty_like(v)
    n_channel = v[0].numel()
    grid = (triton.cdiv(n_channel, _BLOCK),)
    _forward_kernel[grid](a, v, h0, h, v.shape[0], n_channel, BLOCK=_BLOCK, num_warps=2)
    return h


def _backward(a: Tensor, grad: Tensor) -> Tensor:
    if triton is None or not grad.is_cuda:
        return scan_loop_backward(a, grad)
    g = torch.empty_like(grad)
    n_channel = grad[0].numel()
    grid = (triton.cdiv(n_channel, _BLOCK),)
    _backward_kernel[grid](a[-1], grad[-1], g[-1], grad.shape[0], n_channel, BLOCK=_BLOCK, num_warps=2)
    return g


class _LinearScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a: Tensor, v: Tensor, h0: Tensor) -> Tensor:
        a, v, h0 = a.contiguous(), v.contiguous(), h0.contiguous()
        h = _forward(a, v, h0)
        ctx.save_for_backward(a, h, h0)
        return h

    @staticmethod
    def backward(ctx, grad: Tensor):
        a, h, h0 = ctx.saved_tensors
        g = _backward(a, grad.contiguous())
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
