"""What all executors in torch need: devices, and products in float32 that are not done in fewer bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from lmcodec.errors import ConfigError


def find(device: str | torch.device) -> torch.device:
    """The device of that name.

    Raises:
        ConfigError: there is none, or it is neither a CPU nor a CUDA device.
    """
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"{device!r} is no device of torch, expected cpu, cuda or cuda:0") from None
    if found.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {device} is not supported, expected cpu or cuda")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {device}: torch {torch.__version__} finds no such device")
    return found


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """float32 products in float32: no autocast, no TF32, no bfloat16. The caller's choice comes back.

    The choice is torch's, for all threads: it is touched only where it is not the full precision already.
    """
    with torch.autocast(device.type, enabled=False):
        backends = (torch.backends.mkldnn, torch.backends.cuda)
        matmuls = [b.matmul for b in backends if hasattr(getattr(b, "matmul", None), "fp32_precision")]
        chosen = [m.fp32_precision for m in matmuls]  # none of them before torch 2.9
        if matmuls and all(precision in ("none", "ieee") for precision in chosen):
            yield
            return
        # The older setting as well: torch refuses to run where the two contradict each other.
        try:
            before = torch.get_float32_matmul_precision()
        except RuntimeError:  # they do
            before = "highest"
        try:
            torch.set_float32_matmul_precision("highest")
            yield
        finally:
            torch.set_float32_matmul_precision(before)
            for m, precision in zip(matmuls, chosen, strict=True):
                m.fp32_precision = precision


_SUM_LOGITS = 1 << 22  # whose frequencies are summed at once: 16 bytes each


def span_sums(logits: Tensor, frequencies: Callable[[Tensor], Tensor], spans: np.ndarray) -> np.ndarray:
    """Sums of frequencies over spans of tokens, in integers, of which alone leave the device.

    Args:
        logits: (n_row, V) int32.
        frequencies: of (..., V) logits, (..., V) integers of at most 2^24.
        spans: (n, 3) uint32: row, token, and the token behind the last one. Ascending by rows.

    Returns:
        (n,) uint64.
    """
    n_row, n_token = logits.shape
    wanted = torch.from_numpy(spans.astype(np.int64)).to(logits.device)
    sums = torch.empty(len(spans), dtype=torch.int64, device=logits.device)
    n_piece = max(1, _SUM_LOGITS // n_token)
    bounds = np.searchsorted(spans[:, 0], np.arange(0, n_row + n_piece, n_piece))
    with torch.no_grad():
        for k, first in enumerate(range(0, n_row, n_piece)):
            row, low, high = wanted[bounds[k] : bounds[k + 1]].unbind(1)
            below = frequencies(logits[first : first + n_piece]).to(torch.int64).cumsum(dim=-1)
            low_sum = torch.where(low > 0, below[row - first, (low - 1).clamp_(min=0)], 0)
            sums[bounds[k] : bounds[k + 1]] = below[row - first, high - 1] - low_sum
    return sums.cpu().numpy().astype(np.uint64)
