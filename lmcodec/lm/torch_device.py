"""What all executors in torch need: devices, products in float32 that are not done in fewer bits, and steps
that a CUDA device takes as one graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmcodec.errors import ConfigError, reason_of


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


class Replay:
    """Calls a function of no arguments again and again; a CUDA device records it once and then replays it.

    Starting an operation takes a CUDA device longer than a step's operation itself. A captured graph
    (`torch.cuda.CUDAGraph`) starts all of them at once, always the same ones on the same memory. So the
    function reads and writes tensors that stay where they are, gives a tensor of the same shape each time,
    reads nothing back to the host and does not branch on data. Elsewhere it is simply called.

    The first calls run on a stream of their own, so that libraries and constants are there before the
    capture. Where that fails the function is called as it is from then on, and a line says so, once.

    Args:
        device: where the function computes.
        capture: False to call the function always.
    """

    WARM_UP = 3  # calls before the capture

    def __init__(self, device: torch.device, capture: bool = True) -> None:
        self._device = device
        self._captures = capture and device.type == "cuda"
        self._n_call = 0
        self._side: Any = None  # the stream of the first calls
        self._graph: Any = None
        self._result: Tensor | None = None

    @property
    def captured(self) -> bool:
        """Whether calls replay a graph."""
        return self._graph is not None

    def __call__(self, function: Callable[[], Tensor]) -> Tensor:
        """What the function gives, as a tensor of the caller's own."""
        if not self._captures:
            return function()
        if self._graph is None:
            if self._n_call < self.WARM_UP:
                self._n_call += 1
                return self._aside(function)
            try:
                self._graph, self._result = self._capture(function)
            except RuntimeError as error:  # nothing has run: a capture only records
                self._captures = False
                warnings.warn(
                    f"{self._device} captures no graph of a step, which takes longer without: "
                    f"{reason_of(error)}",
                    RuntimeWarning,
                    stacklevel=4,
                )
                return function()
        assert self._result is not None
        self._run()
        return self._result.clone()

    def _aside(self, function: Callable[[], Tensor]) -> Tensor:
        """The function on a side stream, as capturing asks for."""
        here = torch.cuda.current_stream(self._device)
        self._side = self._side or torch.cuda.Stream(self._device)
        self._side.wait_stream(here)
        with torch.cuda.stream(self._side):
            result = function()
        here.wait_stream(self._side)
        result.record_stream(here)  # its memory is not given to the side stream before it was read here
        return result

    def _capture(self, function: Callable[[], Tensor]) -> tuple[Any, Tensor]:
        """The graph, with a memory pool of its own, and the tensor that it writes its result into."""
        graph = torch.cuda.CUDAGraph()
        # Other threads may allocate meanwhile: only what this one does must be allowed in a capture.
        with torch.cuda.device(self._device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
            result = function()
        return graph, result

    def _run(self) -> None:
        with torch.cuda.device(self._device):
            self._graph.replay()


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
