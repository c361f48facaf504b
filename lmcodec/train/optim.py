"""Optimisers: Muon for the matrices inside the layers, AdamW for everything else.

Muon (Jordan et al., 2024): momentum, then the nearest semi-orthogonal matrix by five Newton-Schulz steps, so
that every direction of a matrix moves at the same rate.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


@torch.no_grad()
def orthogonalise(g: Tensor, dtype: torch.dtype) -> Tensor:
    """The semi-orthogonal matrices near g (..., N, K), by five quintic Newton-Schulz steps: float32."""
    a, b, c = _NS_COEFFICIENTS
    tall = g.shape[-2] > g.shape[-1]
    x = (g.mT if tall else g).to(dtype)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        s = x @ x.mT
        x = a * x + (b * s + c * (s @ s)) @ x
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay.

    Args:
        params: matrices (N, K).
        lr: step, in units of a matrix of spectral norm sqrt(max(1, N / K)).
        momentum: of the gradient's running mean.
        weight_decay: share of a weight lost per step, times lr.
        parts: into how many equal blocks of rows a matrix is split before it is orthogonalised, by
            parameter (projections that are stacked into one product are different matrices).
        dtype: of the Newton-Schulz products.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        parts: dict[Tensor, int] | None = None,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._parts = parts or {}
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            blocks: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}  # shape -> (block of p, its gradient)
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                m = state["momentum"]
                m.lerp_(p.grad, 1 - momentum)
                g = p.grad.lerp(m, momentum)
                p.mul_(1 - lr * group["weight_decay"])
                n = self._parts.get(p, 1)
                for block in zip(p.chunk(n), g.chunk(n), strict=True):
                    blocks.setdefault(block[0].shape, []).append(block)
            # Blocks of one shape together: few large products in place of many small ones.
            for shape, members in blocks.items():
                updates = orthogonalise(torch.stack([g for _, g in members]), self._dtype)
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                for (p, _), update in zip(members, updates.unbind(), strict=True):
                    p.add_(update, alpha=-lr * scale)
