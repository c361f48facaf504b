"""Cross-entropy over a vocabulary, in pieces, so that the logits of a window are never held at once.

The gradients of hidden states and output weights are computed in the forward pass, piece by piece while the
logits are in cache. Distillation replaces a part of the one-hot target by a teacher's distribution over the
same vocabulary.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def _chunk(device: torch.device) -> int:
    """Rows of logits at once: on the CPU what stays in cache (512 x 6,144 bf16 values are 6 MB)."""
    return 8192 if device.type == "cuda" else 512


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, hidden, weight, bias, target, teacher_hidden, teacher_weight, teacher_bias, share, dtype
    ):
        n = hidden.shape[0]
        w = weight.to(dtype)
        wt = w.t()
        b = bias.to(dtype)
        nats = torch.empty(n, device=hidden.device)
        grad_hidden = torch.empty(hidden.shape, dtype=dtype, device=hidden.device)
        grad_weight = torch.zeros(weight.shape, device=weight.device)
        grad_bias = torch.zeros(bias.shape, device=bias.device)
        rows = _chunk(hidden.device)
        for i in range(0, n, rows):
            x = hidden[i : i + rows].to(dtype)
            t = target[i : i + rows].unsqueeze(1)
            p = torch.softmax(torch.addmm(b, x, wt), dim=-1)
            nats[i : i + rows] = -p.gather(1, t).squeeze(1).float().clamp_min(1e-30).log()
            if share:
                y = teacher_hidden[i : i + rows].to(dtype)
                q = torch.softmax(
                    torch.addmm(teacher_bias.to(dtype), y, teacher_weight.to(dtype).t()), dim=-1
                )
                p -= share * q
            p.scatter_add_(1, t, torch.full_like(t, share - 1.0, dtype=p.dtype))
            grad_hidden[i : i + rows] = p @ w
            grad_weight += p.t() @ x
            grad_bias += p.sum(dim=0, dtype=torch.float32)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.n, ctx.weight_dtype = n, weight.dtype
        ctx.mark_non_differentiable(nats)
        return nats.mean(), nats

    @staticmethod
    def backward(ctx, grad, _):
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        s = grad / ctx.n
        return grad_hidden * s, grad_weight.to(ctx.weight_dtype) * s, grad_bias * s, *(None,) * 6


def cross_entropy(
    hidden: Tensor,
    head: tuple[Tensor, Tensor],
    target: Tensor,
    *,
    teacher: tuple[Tensor, tuple[Tensor, Tensor]] | None = None,
    share: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Mean loss and nats of every target.

    Args:
        hidden: (N, D), what the output layer sees.
        head: weight (V, D) and bias (V,) of the output layer.
        target: (N,) int64.
        teacher: hidden states (N, D') and head of a teacher over the same vocabulary.
        share: of the teacher's distribution in the target; 0 is plain cross-entropy.
        dtype: of the products.

    Returns:
        (): loss in nats, differentiable in hidden and head, up to the teacher's entropy (a constant);
        (N,): nats of each target under the network, not differentiable.
    """
    if teacher is None:
        share = 0.0
    teacher_hidden, (teacher_weight, teacher_bias) = teacher or (hidden, head)
    loss, nats = _CrossEntropy.apply(
        hidden, *head, target, teacher_hidden.detach(), teacher_weight, teacher_bias, share, dtype
    )
    return loss, nats


@torch.no_grad()
def nats_of(
    hidden: Tensor, head: tuple[Tensor, Tensor], target: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """(N,) nats of each target, products in `dtype`, softmax in float32: for validation."""
    weight, bias = head[0].to(dtype), head[1]
    rows = _chunk(hidden.device)
    nats = []
    for x, t in zip(hidden.split(rows), target.split(rows), strict=True):
        logits = F.linear(x.to(dtype), weight).float() + bias
        nats.append(logits.logsumexp(dim=-1) - logits.gather(1, t.unsqueeze(1)).squeeze(1))
    return torch.cat(nats)


NATS_TO_BITS = 1 / math.log(2)
