"""lmcodec: lossless text compression with a language model, context mixing and a range coder.

Importing the package imports neither torch nor transformers nor the native kernel: each is loaded by the
module that needs it.
"""

from __future__ import annotations

TYPE_CHECKING = False  # type checkers take it for True; importing `typing` would take as long as all else
if TYPE_CHECKING:
    from lmcodec import tensors
    from lmcodec.codec import Compressor, Decompressor, FrameInfo, compress, decompress, frame_info
    from lmcodec.codec.prior import Prior
    from lmcodec.codec.records import RecordStore
    from lmcodec.errors import (
        BadMagic,
        Corrupt,
        KernelMissing,
        LimitExceeded,
        LmcodecError,
        ModelNotFound,
        PriorNotFound,
        TrailingData,
        Truncated,
        Unsupported,
    )
    from lmcodec.file import LMFile, open
    from lmcodec.integrations.archives import tarfile_open
    from lmcodec.lm.interface import LanguageModel, Session
    from lmcodec.lm.outside import load_model
    from lmcodec.lm.vocab import Vocabulary
    from lmcodec.measure.bpb import Measurement, bits_per_byte
    from lmcodec.measure.causal import CausalMeasurement, model_bits_per_byte
    from lmcodec.measure.trace import surprisal

__version__ = "0.1.0"

__all__ = [
    "BadMagic",
    "CausalMeasurement",
    "Compressor",
    "Corrupt",
    "Decompressor",
    "FrameInfo",
    "KernelMissing",
    "LMFile",
    "LanguageModel",
    "LimitExceeded",
    "LmcodecError",
    "Measurement",
    "ModelNotFound",
    "Prior",
    "PriorNotFound",
    "RecordStore",
    "Session",
    "TrailingData",
    "Truncated",
    "Unsupported",
    "Vocabulary",
    "__version__",
    "bits_per_byte",
    "compress",
    "decompress",
    "frame_info",
    "load_model",
    "model_bits_per_byte",
    "open",
    "surprisal",
    "tarfile_open",
    "tensors",
]


if not TYPE_CHECKING:  # a type checker would take any name for one of the package's

    def __getattr__(name: str) -> object:
        """Import a public name's module when the name is first used.

        Raises:
            KernelMissing: the name is that of the native kernel, which is not there.
        """
        from importlib import import_module

        if name == "_kernel":  # whoever asks has not found it
            from lmcodec.errors import KernelMissing

            try:
                return import_module("lmcodec._kernel")
            except ImportError as error:
                raise KernelMissing.of(__path__[0], str(error)) from None
        if name == "tensors":
            return import_module("lmcodec.tensors")
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = "errors"
        if name in ("LMFile", "open"):
            module = "file"
        elif name in ("Compressor", "Decompressor", "FrameInfo", "compress", "decompress", "frame_info"):
            module = "codec"
        elif name == "Prior":
            module = "codec.prior"
        elif name == "RecordStore":
            module = "codec.records"
        elif name in ("Measurement", "bits_per_byte"):
            module = "measure.bpb"
        elif name == "surprisal":
            module = "measure.trace"
        elif name in ("CausalMeasurement", "model_bits_per_byte"):
            module = "measure.causal"
        elif name in ("LanguageModel", "Session"):
            module = "lm.interface"
        elif name == "Vocabulary":
            module = "lm.vocab"
        elif name == "load_model":
            module = "lm.outside"
        elif name == "tarfile_open":
            module = "integrations.archives"
        value = globals()[name] = getattr(import_module(f"lmcodec.{module}"), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
