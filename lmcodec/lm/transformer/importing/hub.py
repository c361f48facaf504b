"""Models of the Hugging Face hub: from the local cache, or fetched where the user asks for it."""

from __future__ import annotations

import re
from pathlib import Path

from lmcodec.errors import ConfigError, reason_of
from lmcodec.lm.transformer.importing import safetensors_folder
from lmcodec.lm.transformer.importing.source import Source

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_FILES = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "README.md",
]


def is_id(source: str) -> bool:
    """Whether `source` has the form of a hub id."""
    return _ID.fullmatch(source) is not None


def open_model(source: str, download: bool, revision: str | None) -> Source:
    """The hub's model.

    Raises:
        ConfigError: it is not in the cache, cannot be fetched, or the package huggingface_hub is missing.
        LmcodecError: as `safetensors_folder.open_folder`.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ConfigError(
            f"{source}: models of the hub need huggingface_hub; pip install 'lmcodec[hf]'"
        ) from None
    try:
        folder = snapshot_download(
            source, revision=revision, local_files_only=not download, allow_patterns=_FILES
        )
    except Exception as error:  # of the network and of the hub: many kinds
        if not download:
            which = f" (revision {revision})" if revision else ""
            raise ConfigError(
                f"{source}{which}: is not in the local cache of the hub; --download fetches it"
            ) from None
        raise ConfigError(f"{source}: cannot be fetched from the hub: {reason_of(error)}") from None
    opened = safetensors_folder.open_folder(Path(folder), source)
    opened.card["source"] = source
    opened.card["revision"] = Path(folder).name  # of the cache: the commit
    return opened
