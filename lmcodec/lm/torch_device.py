"""What all executors in torch need: devices, and products in float32 that are not done in fewer bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

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
