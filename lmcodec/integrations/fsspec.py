"""fsspec: `compression="infer"` takes `.lmz`, and with it pandas, Dask, datatrove and others.

fsspec looks for it in each process anew: a worker process registers for itself.
"""

from __future__ import annotations

from typing import Any

from fsspec.compression import register_compression

from lmcodec.integrations.files import opener

NAME = "lmcodec"


def register(**options: Any) -> None:
    """Register the compression `lmcodec` for files that end in `.lmz`."""
    register_compression(NAME, opener(options), "lmz", force=True)
