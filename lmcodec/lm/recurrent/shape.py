"""The shape of a network: what every executor and the model file need to know, and its cost.

Knows no weights, no state and no training option.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from lmcodec.errors import ConfigError

MAX_FAN_IN = 2096  # K: |activation| <= 127 and |weight| <= 63 give sums below 2^24 = exact in float32


@dataclass(frozen=True)
class NetConfig:
    """A stack of gated linear recurrences, each followed by a relu² MLP.

    Attributes:
        vocab_size: V, tokens that are predicted; the embedding has two rows more (`bos`, `mid`).
        dim: D, width of the residual stream.
        n_layer: L.
        recurrent: R, channels of each recurrence.
        mlp: M, hidden width of each MLP; 0 leaves the MLP out.
        shift: mix each sublayer's input with that of the token before, per channel.
        attention: window in tokens of a local attention sublayer in the middle of the stack, 0 for none.
        bigram: rows of a table of embeddings indexed by a hash of the last two tokens, 0 for none.
    """

    vocab_size: int
    dim: int
    n_layer: int
    recurrent: int
    mlp: int
    shift: bool = False
    attention: int = 0
    bigram: int = 0

    def __post_init__(self) -> None:
        limits = {
            "vocab_size": (256, 65_536),
            "dim": (16, MAX_FAN_IN),
            "n_layer": (1, 64),
            "recurrent": (16, MAX_FAN_IN),
            "mlp": (0, MAX_FAN_IN),
            "attention": (0, 4096),
            "bigram": (0, 1 << 20),
        }
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "shift":
                if not isinstance(value, bool):
                    raise ConfigError(f"model.shift is {value!r}, expected true or false")
                continue
            low, high = limits[field.name]
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise ConfigError(
                    f"model.{field.name} is {value!r}, expected an integer from {low} to {high}"
                )

        if self.attention and self.dim < ATTENTION_HEAD:
            raise ConfigError(f"model.attention needs a model.dim of at least {ATTENTION_HEAD}")

    @property
    def bos(self) -> int:
        """Row of the embedding that begins a document."""
        return self.vocab_size

    @property
    def mid(self) -> int:
        """Row of the embedding that begins a text cut out of a document."""
        return self.vocab_size + 1

    @property
    def macs_per_token(self) -> int:
        """Multiply-accumulates of the matrix products of one step of one stream."""
        layer = self.dim * (4 * self.recurrent + 2 * self.mlp)
        attention = self.dim * (2 * self.dim + 2 * ATTENTION_HEAD) if self.attention else 0
        return self.n_layer * layer + attention + self.dim * self.vocab_size

    @property
    def n_weight(self) -> int:
        """Weights in matrices and tables."""
        return self.macs_per_token + (self.vocab_size + 2 + self.bigram) * self.dim


ATTENTION_HEAD = 64  # width of a head of the local attention; keys and values have one head
