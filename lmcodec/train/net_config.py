"""The shape of a network in training: a recurrent model's, and parts that are tried in float only."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from lmcodec.errors import ConfigError, Unsupported
from lmcodec.lm.recurrent.shape import RecurrentConfig

ATTENTION_HEAD = 64  # width of a head of the local attention; keys and values have one head


@dataclass(frozen=True)
class NetConfig(RecurrentConfig):
    """A recurrent model's shape with parts that have no integer definition and so cannot be exported.

    Attributes:
        shift: mix each sublayer's input with that of the token before, per channel.
        attention: window in tokens of a local attention sublayer in the middle of the stack, 0 for none.
        bigram: rows of a table of embeddings indexed by a hash of the last two tokens, 0 for none.
    """

    shift: bool = False
    attention: int = 0
    bigram: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.shift, bool):
            raise ConfigError(f"model.shift is {self.shift!r}, expected true or false")
        for name, high in (("attention", 4096), ("bigram", 1 << 20)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= high:
                raise ConfigError(f"model.{name} is {value!r}, expected an integer from 0 to {high}")
        if self.attention and self.dim < ATTENTION_HEAD:
            raise ConfigError(f"model.attention needs a model.dim of at least {ATTENTION_HEAD}")

    @property
    def macs_per_token(self) -> int:
        """Multiply-accumulates of the matrix products of one step of one stream."""
        attention = self.dim * (2 * self.dim + 2 * ATTENTION_HEAD) if self.attention else 0
        return super().macs_per_token + attention

    @property
    def n_weight(self) -> int:
        """Weights in matrices and tables."""
        return super().n_weight + self.bigram * self.dim

    def exported(self) -> RecurrentConfig:
        """The shape of the integer model of a network of this shape.

        Raises:
            Unsupported: naming the part that has no integer definition.
        """
        for name in ("shift", "attention", "bigram"):
            if getattr(self, name):
                raise Unsupported(f"model.{name} has no integer definition; train without it")
        names = (field.name for field in dataclasses.fields(RecurrentConfig))
        return RecurrentConfig(**{name: getattr(self, name) for name in names})
