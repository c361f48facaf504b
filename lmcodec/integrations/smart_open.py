"""smart_open: `smart_open.open` reads and writes `.lmz`."""

from __future__ import annotations

from typing import Any

import smart_open.compression

from lmcodec.integrations.files import opener


def register(**options: Any) -> None:
    """Register the suffix `.lmz`."""
    registered = getattr(smart_open.compression, "_COMPRESSOR_REGISTRY", {})
    registered.pop(".lmz", None)  # it would warn that another one is there
    smart_open.compression.register_compressor(".lmz", opener(options))
