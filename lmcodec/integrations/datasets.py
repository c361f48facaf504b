"""Hugging Face datasets: `load_dataset("text", data_files="x.txt.lmz")`, streamed or not; fsspec with it.

The library has no call to register with. What it asks are two tables, which are added to here.
"""

from __future__ import annotations

import shutil
from typing import Any

import fsspec
from datasets.filesystems.compression import BaseCompressedFileFileSystem
from datasets.utils import extract, file_utils

import lmcodec
from lmcodec.frame import MAGIC
from lmcodec.integrations import fsspec as fsspec_integration

PROTOCOL = "lmz"


class _FileSystem(BaseCompressedFileFileSystem):
    """A compressed file as a file system that holds its original."""

    protocol = PROTOCOL
    compression = fsspec_integration.NAME
    extensions = [".lmz"]  # noqa: RUF012


def _extractor(options: dict[str, Any]) -> type:
    class LmzExtractor(extract.MagicNumberBaseExtractor):
        magic_numbers = [MAGIC]  # noqa: RUF012

        @staticmethod
        def extract(input_path: Any, output_path: Any) -> None:
            with lmcodec.open(input_path, **options) as packed, open(output_path, "wb") as original:
                shutil.copyfileobj(packed, original, 1 << 20)

    return LmzExtractor


def register(**options: Any) -> None:
    """Register files that end in `.lmz` or begin as one."""
    from lmcodec.integrations.files import reading_options

    fsspec_integration.register(**options)
    fsspec.register_implementation(PROTOCOL, _FileSystem, clobber=True)
    extract.Extractor.extractors[PROTOCOL] = _extractor(reading_options(options))
    for table in ("COMPRESSION_EXTENSION_TO_PROTOCOL", "SINGLE_FILE_COMPRESSION_EXTENSION_TO_PROTOCOL"):
        getattr(file_utils, table)[PROTOCOL] = PROTOCOL
    file_utils.SINGLE_FILE_COMPRESSION_PROTOCOLS.add(PROTOCOL)
    file_utils.MAGIC_NUMBER_TO_COMPRESSION_PROTOCOL[MAGIC] = PROTOCOL
