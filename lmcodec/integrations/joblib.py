"""joblib: `joblib.dump` and `joblib.load` take `.lmz`.

joblib's files are pickles: loading one runs whatever it says. Here a file is only compressed.
"""

from __future__ import annotations

from typing import Any

from joblib.compressor import CompressorWrapper, register_compressor

from lmcodec.file import LMFile
from lmcodec.frame import MAGIC
from lmcodec.integrations.files import reading_options, writing_options

NAME = "lmcodec"


class _Wrapper(CompressorWrapper):
    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(obj=LMFile, prefix=MAGIC, extension=".lmz")
        self._options = options

    def compressor_file(self, fileobj: Any, compresslevel: int | None = None) -> LMFile:
        options = self._options if compresslevel is None else {**self._options, "level": compresslevel}
        return LMFile(fileobj, "wb", **writing_options(options))

    def decompressor_file(self, fileobj: Any) -> LMFile:
        return LMFile(fileobj, "rb", **reading_options(self._options))


def register(**options: Any) -> None:
    """Register the compressor `lmcodec` for files that end in `.lmz`."""
    register_compressor(NAME, _Wrapper(options), force=True)
