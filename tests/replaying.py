"""What a CUDA graph does, done on the CPU: the operations of one call are recorded and run again.

A graph starts the same operations on the same memory, whatever has changed since: numbers that Python
computed while it was captured stay as they were, and so do branches. `RecordedReplay` does that with torch's
operations, so that a step which is not a function of its buffers alone gives something else here, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from lmcodec.lm import torch_device

# Operations that hand a number to the host, or whose result has a shape that depends on data.
READ_BACK = ("_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero", "unique", "masked_select")


def is_view(func: Any) -> bool:
    return any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)


class Launches(TorchDispatchMode):
    """Counts operations that start work on a device; views start none.

    Attributes:
        counts: by name.
        devices: kinds of devices that tensors were on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.devices: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not is_view(func):
            self.counts[func._schema.name.partition("::")[2]] += 1
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_flatten((args, kwargs, out))[0] if isinstance(x, Tensor)]
        self.devices |= {x.device.type for x in tensors}
        return out

    @property
    def n_read_back(self) -> int:
        """Operations that make the host wait for the device."""
        return sum(self.counts[name] for name in READ_BACK)


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not is_view(func):
            self.calls.append((func, args, kwargs or {}, out))
        return out


class RecordedReplay(torch_device.Replay):
    """Replays operations as a CUDA graph does, each into the memory that it was recorded with.

    Args:
        buffers: all tensors that the function keeps from one call to the next.
    """

    def __init__(self, buffers: list[Tensor]) -> None:
        super().__init__(torch.device("cpu"))
        self._captures = True
        self._buffers = buffers
        self.n_replay = 0

    def _aside(self, function: Callable[[], Tensor]) -> Tensor:
        return function()

    def _capture(self, function: Callable[[], Tensor]) -> tuple[Any, Tensor]:
        before = [x.clone() for x in self._buffers]
        with _Recorder() as recorder:
            result = function()
        for x, value in zip(self._buffers, before, strict=True):  # a capture runs nothing
            x.copy_(value)
        return recorder, result

    def _run(self) -> None:
        self.n_replay += 1
        for func, args, kwargs, out in self._graph.calls:
            new = func(*args, **kwargs)
            for old, fresh in zip(tree_flatten(out)[0], tree_flatten(new)[0], strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != fresh.data_ptr():
                    old.copy_(fresh)
