"""Optimisers: Muon for the matrices inside the layers, AdamW for everything else.

Muon (Jordan et al., 2024): momentum, then the nearest semi-orthogonal matrix by five Newton-Schulz steps, so
that every direction of a matrix moves at the same rate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lmcodec.train.config import OptimiserConfig

MATRICES = ("w_in", "w_out", "w_up", "w_down")  # of a layer, in a parameter's last name

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
        lr: step, in units of a matrix of spectral norm sqrt(max(1, N / K)); a number or a device tensor ().
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
        lr: float | Tensor,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        parts: dict[Tensor, int] | None = None,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._parts = parts or {}
        self.found_inf: Tensor | None = None
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One update. Where `found_inf` is set (a device tensor, 0 or 1) and 1, nothing changes.

        No value comes back to the host, so that a step can be captured as a CUDA graph.
        """
        sound = None if self.found_inf is None else self.found_inf == 0
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if not self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
            moments = [self.state[p]["momentum"] for p in params]
            gradients = [p.grad for p in params]
            if sound is not None:  # a gradient that is the momentum leaves it as it is
                gradients = [torch.where(sound, g, m) for g, m in zip(gradients, moments, strict=True)]
                lr = lr * sound
            torch._foreach_lerp_(moments, gradients, 1 - momentum)
            directions = torch._foreach_lerp(gradients, moments, momentum)
            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
            blocks: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}  # shape -> (block of p, direction)
            for p, g in zip(params, directions, strict=True):
                n = self._parts.get(p, 1)
                for block in zip(p.chunk(n), g.chunk(n), strict=True):
                    blocks.setdefault(block[0].shape, []).append(block)
            # Blocks of one shape together: few large products in place of many small ones.
            for shape, members in blocks.items():
                updates = orthogonalise(torch.stack([g for _, g in members]), self._dtype)
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                updates.mul_(lr * -scale)
                torch._foreach_add_([p for p, _ in members], list(updates.unbind()))


def make_optimisers(
    parameters: Mapping[str, nn.Parameter], o: OptimiserConfig, dtype: torch.dtype, scale: float = 1.0
) -> list[torch.optim.Optimizer]:
    """Optimisers of a network's parameters; each group's full rate is its "peak", times a schedule its "lr".

    On CUDA rates are device tensors, so that a captured step reads what the host sets.

    Args:
        parameters: by name.
        o: kinds and rates.
        dtype: of the products, bfloat16 or float32.
        scale: factor of all rates.
    """
    device = next(iter(parameters.values())).device
    matrices = [p for n, p in parameters.items() if n.rsplit(".", 1)[-1] in MATRICES]
    tables = [p for n, p in parameters.items() if n in ("embed", "w_head", "bigram")]
    chosen = {id(p) for p in matrices + tables}
    vectors = [p for p in parameters.values() if id(p) not in chosen]
    groups = [
        {"params": tables, "lr": o.lr, "weight_decay": o.table_decay},
        {"params": vectors, "lr": o.lr, "weight_decay": 0.0},
    ]
    optimisers: list[torch.optim.Optimizer] = []
    if o.kind == "muon":
        # Projections that are stacked into one product are different matrices.
        parts = {p: 3 for n, p in parameters.items() if n.startswith("layers.") and n.endswith("w_in")}
        optimisers.append(
            Muon(
                matrices,
                lr=o.matrix_lr,
                momentum=o.momentum,
                weight_decay=o.weight_decay,
                parts=parts,
                dtype=torch.bfloat16 if dtype == torch.bfloat16 else torch.float32,
            )
        )
    else:
        groups.append({"params": matrices, "lr": o.matrix_lr, "weight_decay": o.weight_decay})
    capturable = device.type == "cuda"
    optimisers.append(
        torch.optim.AdamW(groups, betas=(o.beta1, o.beta2), eps=1e-9, fused=True, capturable=capturable)
    )
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["peak"] = group["lr"] * scale
            if capturable:
                group["lr"] = torch.tensor(group["peak"], device=device)
    return optimisers
