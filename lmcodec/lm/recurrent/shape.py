"""The shape of a network: what every executor and the model file need to know, and its cost.

Knows no weights, no state and no training option.
"""

from __future__ import annotations

from dataclasses import dataclass

from lmcodec.errors import ConfigError

MAX_FAN_IN = 2096  # K: |activation| <= 127 and |weight| <= 63 give sums below 2^24 = exact in float32


@dataclass(frozen=True)
class RecurrentConfig:
    """A stack of gated linear recurrences, each followed by a relu² MLP.

    Attributes:
        vocab_size: V, tokens that are predicted; the embedding has two rows more (`bos`, `mid`).
        dim: D, width of the residual stream.
        n_layer: L.
        recurrent: R, channels of each recurrence.
        mlp: M, hidden width of each MLP; 0 leaves the MLP out.
    """

    vocab_size: int
    dim: int
    n_layer: int
    recurrent: int
    mlp: int

    def __post_init__(self) -> None:
        limits = {
            "vocab_size": (256, 65_536),
            "dim": (16, MAX_FAN_IN),
            "n_layer": (1, 64),
            "recurrent": (16, MAX_FAN_IN),
            "mlp": (0, MAX_FAN_IN),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise ConfigError(f"model.{name} is {value!r}, expected an integer from {low} to {high}")

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
        return self.n_layer * layer + self.dim * self.vocab_size

    @property
    def n_weight(self) -> int:
        """Weights in matrices and tables."""
        return self.macs_per_token + (self.vocab_size + 2) * self.dim
