"""How a block is coded: the numbers that make an engine, the engine itself, and what it takes.

An engine is loaded when the first one is made: what codes no text loads neither NumPy nor the kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from lmcodec.frame import Block, Method
from lmcodec.lm.store import Model

if TYPE_CHECKING:
    from lmcodec.codec.base import Base
    from lmcodec.engine import Engine, LmEngine
    from lmcodec.planes import PlaneEngine
    from lmcodec.tensor_files.layout import Layout

    AnyEngine = Engine | LmEngine | PlaneEngine

MakeEngine = Callable[["EngineSpec"], "AnyEngine"]

# With a language model, a block of as many streams has two groups: while the network steps one, the other is
# coded. Fewer streams a group would waste more of the products than that gains.
LM_GROUPED_STREAMS = 8


def lm_groups(streams: int, model: Model | None = None) -> int:
    """Groups of a block of so many lockstep streams with a language model.

    A large one has one group: two threads share each of its steps, which read its weights for all streams.
    """
    return 2 if streams >= LM_GROUPED_STREAMS and not (model and model.is_large) else 1


class Chain(NamedTuple):
    """Blocks that a flush ended, of which each continues the one before."""

    tables_log2: int


class Numbers(NamedTuple):
    """What is known of a block's numbers that it is encoded by method tensor.

    Attributes:
        layout: fields of a record.
        row_nbytes: bytes of a matrix's row, 0 if there are none.
        base_at: where bytes that they are near lie in the base; None to code them by themselves.
    """

    layout: Layout
    row_nbytes: int = 0
    base_at: int | None = None


class EngineSpec(NamedTuple):
    """How a block is coded: what makes an engine."""

    method: Method
    profile: int
    streams: int
    groups: int
    model: Model | None = None
    enlarge: int = 0
    may_thin: bool = False
    numbers: Numbers | None = None
    base: Base | None = None

    @property
    def may_be_helped(self) -> bool:
        """Whether a second thread can help with a block."""
        return self.model is not None and self.model.may_be_helped

    def thinned(self) -> EngineSpec:
        """With a quarter of the streams, where their number is the codec's choice."""
        if not self.may_thin:
            return self
        streams = max(self.streams // 4, 1)
        return self._replace(streams=streams, groups=min(self.groups, lm_groups(streams, self.model)))

    def block(
        self,
        original_nbytes: int,
        payload_nbytes: int,
        last: bool,
        continues: bool,
        chain: Chain | None = None,
    ) -> Block:
        """The header of a block that is coded so."""
        return Block(
            self.method,
            original_nbytes,
            payload_nbytes,
            self.profile,
            self.streams,
            self.groups,
            last=last,
            continues=continues,
            enlarge=self.enlarge,
            chained=chain is not None,
            tables_log2=chain.tables_log2 if chain is not None and not continues else 0,
        )

    def memory_nbytes(
        self, block_nbytes: int, chained: bool, encoding: bool = False, tables_nbytes: int = 0
    ) -> int:
        """What coding a block of `block_nbytes` bytes takes at most."""
        if self.method == Method.TENSOR:
            from lmcodec import planes

            return planes.memory_nbytes(block_nbytes, encoding)
        engine, _ = _modules()
        nbytes, streams = block_nbytes, self.streams
        if self.model is None:
            return engine.memory_nbytes(
                self.profile, nbytes, streams, chained, self.enlarge, tables_nbytes, encoding
            )
        profile = self.profile or None
        return engine.lm_memory_nbytes(
            self.model, profile, nbytes, streams, chained, encoding, self.enlarge, tables_nbytes
        )


@cache
def _modules() -> tuple[Any, Any]:
    """What makes engines, and what names instruction sets. Once asked for, they need no import."""
    from lmcodec import engine
    from lmcodec.lm import isa

    return engine, isa


Key = tuple[EngineSpec, ...]  # those that a block has the choice of


def make_engine(
    spec: EngineSpec,
    cm: Callable[..., Engine] | None = None,
    lm: Callable[..., LmEngine] | None = None,
) -> AnyEngine:
    """An engine of that spec.

    Args:
        cm, lm: what makes it, in place of `engine.Engine` and `engine.LmEngine`.
    """
    if spec.method == Method.TENSOR:
        from lmcodec.planes import PlaneEngine

        view = None if spec.base is None else spec.base.view
        return PlaneEngine(*(spec.numbers or ()), base=view)
    engine, isa = _modules()
    shape = spec.streams, spec.groups, spec.enlarge
    instead: dict[str, Any] = {} if isa.is_usable() else {"isa": ""}
    if spec.model is None:
        return (cm or engine.Engine)(spec.profile, *shape, **instead)
    return (lm or engine.LmEngine)(spec.model, spec.profile or None, *shape, **instead)
