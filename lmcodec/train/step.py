"""One training step on the device: forward, backward, update and counting, without a word to the host.

The host only fills static buffers and starts the work: nothing in a step waits for the device, so that on
CUDA the step can be captured once as a graph and replayed. A step whose loss or gradient is not finite
changes neither weights nor moments nor the recurrent state; the host learns of it when it reads the tallies.

What can fail on a machine that nobody has tried has a fallback, and the reason is reported: fused element
work falls back to plain operations, a graph to single launches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from lmcodec.errors import reason_of
from lmcodec.train.loss import NATS_TO_BITS, cross_entropy
from lmcodec.train.net import Elementwise, Net, State, WeightRounding
from lmcodec.train.shards import Window

# Steps run one by one before a graph is captured: compilers and allocators are warm then.
WARM_STEPS = 3

T = TypeVar("T")
Capture = Callable[[Callable[[], None]], Callable[[], object]]


def capture_graph(work: Callable[[], None]) -> Callable[[], object]:
    """Capture `work` as a CUDA graph; the result replays it."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


@dataclass
class Counts:
    """What steps did since the last reading.

    Attributes:
        bits, nbytes: (n_category,) float64, of the steps that counted.
        n_skipped: steps that were not finite.
        longest: of these, the most in a row, in rows that may have begun before the last reading.
    """

    bits: np.ndarray
    nbytes: np.ndarray
    n_skipped: int
    longest: int


class Stepper:
    """Trains `net` window by window.

    Args:
        net: what is trained.
        average: its averaged weights.
        optimisers: of its parameters; a group's "lr" may be a device tensor, its "peak" is the full rate.
        token_nbytes: (V,) int64 on the device, bytes of each token.
        n_category: number of categories in the tallies.
        lanes: B.
        window: T.
        clip: largest norm of the gradient.
        teacher: network to distil from.
        share: of the teacher's distribution in the target.
        capture: turns the step into something that replays it; None to launch every operation.
        report: receives a line where something falls back.
    """

    def __init__(
        self,
        net: Net,
        average: Net,
        optimisers: Sequence[torch.optim.Optimizer],
        token_nbytes: Tensor,
        *,
        n_category: int,
        lanes: int,
        window: int,
        clip: float,
        teacher: Net | None = None,
        share: float = 0.0,
        capture: Capture | None = None,
        report: Callable[[str], None],
    ) -> None:
        device = token_nbytes.device
        self._net, self._average, self._teacher = net, average, teacher
        self._optimisers = optimisers
        self._token_nbytes = token_nbytes
        self._clip, self._share = clip, share
        self._capture, self._report = capture, report
        self._parameters = list(net.parameters())
        self._averaged = list(average.parameters())
        self._inputs = torch.zeros(window, lanes, dtype=torch.int32, device=device)
        self._targets = torch.zeros(window * lanes, dtype=torch.int64, device=device)
        self._begins = torch.zeros(window, lanes, dtype=torch.bool, device=device)
        self._category = torch.zeros(window * lanes, dtype=torch.uint8, device=device)
        self._numbers = torch.arange(n_category, dtype=torch.uint8, device=device).unsqueeze(1)  # (C, 1)
        self._share_of_new = torch.zeros((), device=device)  # what the average takes of the weights
        self._tally = torch.zeros(2, n_category, dtype=torch.float64, device=device)
        self._skipped, self._in_row, self._longest = torch.zeros(3, dtype=torch.float64, device=device)
        self.state: State = net.start(lanes, device)
        self.teacher_state: State = {} if teacher is None else teacher.start(lanes, device)
        self._replay: Callable[[], object] | None = None
        self._mode: tuple[bool, WeightRounding] | None = None  # what `_replay` was captured with
        self._n_warm = 0
        self._stream = torch.cuda.Stream() if device.type == "cuda" else None

    def step(self, window: Window, rate: float, memory: float) -> None:
        """Train on one window.

        Args:
            window: (T, B) tokens.
            rate: factor of all groups' full rates.
            memory: share of the average that stays.
        """
        self._load(window)
        self._share_of_new.fill_(1 - memory)
        for optimiser in self._optimisers:
            for group in optimiser.param_groups:
                lr = group["lr"]
                if isinstance(lr, Tensor):
                    lr.fill_(group["peak"] * rate)
                else:
                    group["lr"] = group["peak"] * rate
        mode = (self._net.quantise_activations, self._net.rounding)
        if mode != self._mode:
            self._replay, self._mode, self._n_warm = None, mode, 0
        if self._replay is None and self._capture is not None and self._n_warm >= WARM_STEPS:
            self._try_capture(self._capture)
        if self._replay is not None:
            self._replay()
            return
        self.guarded(self._on_stream)
        self._n_warm += 1

    def guarded(self, work: Callable[[], T]) -> T:
        """What `work` returns; where fused element work fails, it is given up and `work` runs again."""
        try:
            return work()
        except Exception as error:
            if not self._net.ops.compiled:
                raise
            self._report(f"fused element work failed ({reason_of(error)}): it runs unfused, slower")
            for net in (self._net, self._average, self._teacher):
                if net is not None:
                    net.ops = Elementwise(False)
            return work()

    def read(self) -> Counts:
        """What the steps since the last reading counted; waits for the device."""
        flat = torch.cat((self._tally.flatten(), torch.stack((self._skipped, self._longest)))).cpu().numpy()
        self._tally.zero_()
        self._skipped.zero_()
        self._longest.zero_()
        bits, nbytes = flat[:-2].reshape(2, -1)
        return Counts(bits, nbytes, int(flat[-2]), int(flat[-1]))

    def reset(self) -> None:
        """Forget the recurrent state and the row of skipped steps."""
        for t, start in zip(
            self.state.values(), self._net.start(self._inputs.shape[1]).values(), strict=True
        ):
            t.copy_(start)
        self._in_row.zero_()
        self._longest.zero_()

    def _load(self, window: Window) -> None:
        for target, source in (
            (self._inputs, window.inputs),
            (self._targets, window.targets.reshape(-1)),
            (self._begins, window.begins),
            (self._category, window.category.reshape(-1)),
        ):
            t = torch.from_numpy(source)
            if target.is_cuda:
                t = (
                    t.pin_memory()
                )  # freed when the copy has run; a pageable one would wait for the step before
            target.copy_(t, non_blocking=True)

    def _on_stream(self) -> None:
        if self._stream is None:
            self._compute()
            return
        # Gradients that were made on the stream of a capture's warm-up, as torch.cuda.graph wants it.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._compute()
        torch.cuda.current_stream().wait_stream(self._stream)

    def _try_capture(self, capture: Capture) -> None:
        for optimiser in self._optimisers:
            optimiser.zero_grad(set_to_none=True)
        try:
            self._replay = capture(self._compute)
        except Exception as error:
            self._capture = None
            self._report(
                f"the step cannot be captured as a graph ({reason_of(error)}): launched piece by piece"
            )

    def _compute(self) -> None:
        """The step, from the static buffers to the static buffers."""
        net = self._net
        weights = net.weights()
        hidden, after = net(self._inputs, self._begins, self.state, weights)
        teacher = None
        if self._teacher is not None:
            with torch.no_grad():
                told = self._teacher.weights()
                seen, teacher_after = self._teacher(self._inputs, self._begins, self.teacher_state, told)
                teacher = (seen.flatten(0, 1), self._teacher.head(told))
                _copy(self.teacher_state, teacher_after)
        loss, nats = cross_entropy(
            hidden.flatten(0, 1),
            net.head(weights),
            self._targets,
            teacher=teacher,
            share=self._share,
            dtype=net.dtype,
        )
        for optimiser in self._optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._clip)
        finite = torch.isfinite(norm) & torch.isfinite(loss.detach())
        for optimiser in self._optimisers:
            optimiser.found_inf = (~finite).float()
            optimiser.step()
        with torch.no_grad():
            torch._foreach_lerp_(self._averaged, self._parameters, [self._share_of_new] * len(self._averaged))
            _copy(self.state, after, finite)
            self._count(nats, finite)

    def _count(self, nats: Tensor, finite: Tensor) -> None:
        counted = torch.stack((nats.double() * NATS_TO_BITS, self._token_nbytes[self._targets].double()))
        mine = (self._category == self._numbers).double()  # (C, N)
        # A sum over each category, by products: adding many numbers to one place would serialise.
        self._tally += torch.where(finite, counted @ mine.T, 0.0)
        bad = (~finite).double()
        self._skipped += bad
        self._in_row.copy_((self._in_row + 1) * bad)
        torch.maximum(self._longest, self._in_row, out=self._longest)


def _copy(state: State, after: Mapping[str, Tensor], where: Tensor | None = None) -> None:
    for name, t in state.items():
        new = after[name].to(t.dtype)
        t.copy_(new if where is None else torch.where(where, new, t))
