"""Weights and tokenizers of causal models as transformers loads them: safetensors, and no code of theirs.

Nothing is fetched unless the caller asks for it, nothing is unpickled, and a checkpoint that lacks a tensor
is refused: transformers would fill it with random numbers.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from lmcodec.errors import ConfigError, Corrupt, LimitExceeded, LmcodecError, Unsupported, reason_of
from lmcodec.lm import kinds

DTYPES = ("float32", "bfloat16", "float16")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_FILES = ["*.json", "*.safetensors", "tokenizer.model", "merges.txt", "vocab.txt"]
_VOLATILE = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "auto_map")
_MAX_JSON_NBYTES = 1 << 27
_lock = threading.Lock()


@contextmanager
def quiet() -> Iterator[None]:
    """Neither warnings nor progress of transformers; as it was before, afterwards."""
    from transformers.utils import logging as log

    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level, shown = log.get_verbosity(), log.is_progress_bar_enabled()
        log.set_verbosity(logging.CRITICAL)
        log.disable_progress_bar()
        try:
            yield
        finally:
            log.set_verbosity(level)
            if shown:
                log.enable_progress_bar()


def folder_of(reference: str, download: bool = False) -> Path:
    """The folder that a path or a hub id names.

    Raises:
        ConfigError: there is none, or it is not in the hub's local cache.
    """
    path = Path(reference)
    if path.is_dir():
        if download:
            raise ConfigError(f"{reference}: is a folder; --download is for models of the hub")
        return path
    if path.exists():
        raise ConfigError(f"{reference}: is a file; name the folder that has config.json and *.safetensors")
    if not _ID.fullmatch(reference):
        raise ConfigError(f"{reference}: no such folder, and no hub id of the form OWNER/NAME")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ConfigError(
            f"{reference}: models of the hub need huggingface_hub; pip install 'lmcodec[hf]'"
        ) from None
    try:
        return Path(snapshot_download(reference, local_files_only=not download, allow_patterns=_FILES))
    except Exception as error:  # of the network and of the hub: many kinds
        if not download:
            raise ConfigError(
                f"{reference}: is no folder, and not in the local cache of the hub; --download fetches it"
            ) from None
        raise ConfigError(f"{reference}: cannot be fetched from the hub: {reason_of(error)}") from None


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model.

    Raises:
        Unsupported: it has none.
        Corrupt: its index is none, or names files elsewhere.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise Corrupt(f"{index.name} has no weight_map")
        names = sorted(set(map(str, shards.values())))
        if any(os.path.basename(name) != name for name in names):
            raise Corrupt(f"{index.name} names a file outside of the folder")
        files = [folder / name for name in names]
        if missing := [file.name for file in files if not file.is_file()]:
            raise Corrupt(f"{missing[0]} is missing")
        return files
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
        raise Unsupported(
            "its weights are pickled (.bin), which is not read; convert them to safetensors"
            if pickled
            else "has no *.safetensors"
        )
    return files


def read_json(path: Path) -> dict[str, Any]:
    """A file's JSON object.

    Raises:
        ConfigError: there is no such file.
        Corrupt: it holds none.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_JSON_NBYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path.name} cannot be read: {error.strerror}") from None
    try:
        found = json.loads(data) if len(data) <= _MAX_JSON_NBYTES else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Corrupt(f"{path.name} holds no JSON object")
    return found


def digest_of(files: list[Path], config: dict[str, Any]) -> str:
    """SHA-256 of all tensors, in the order of their names, and of the configuration; in hexadecimal.

    How tensors are spread over files does not matter.
    """
    from safetensors import safe_open

    digest = hashlib.sha256(b"lmcodec hf 1\0")
    plain = {name: value for name, value in config.items() if name not in _VOLATILE}
    text = json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()
    digest.update(len(text).to_bytes(8, "little") + text)
    where: dict[str, Any] = {}
    for file in files:
        opened = safe_open(str(file), framework="pt")
        for name in list(opened.keys()):
            if name in where:
                raise Corrupt(f"tensor {name} is in two files")
            where[name] = opened
    import torch

    for name in sorted(where):
        tensor = where[name].get_tensor(name)
        head = f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}".encode()
        digest.update(len(head).to_bytes(8, "little") + head)
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_weights(folder: Path, device: str, dtype: str, attention: str | None) -> Any:
    """The model in torch, for inference.

    Raises:
        ConfigError: transformers cannot load it.
        Corrupt: a tensor is missing, or has another shape than the configuration asks for.
    """
    import torch
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    try:
        with quiet():
            model, info = AutoModelForCausalLM.from_pretrained(
                str(folder),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=getattr(torch, dtype),
                output_loading_info=True,
                **options,
            )
    except (MemoryError, LmcodecError):
        raise
    except Exception as error:  # of transformers and safetensors: many kinds
        if is_out_of_memory(error):
            raise MemoryError from None
        raise ConfigError(f"transformers cannot load it: {reason_of(error)}") from None
    for what in ("missing_keys", "mismatched_keys", "error_msgs"):
        if lacking := info.get(what):
            first = sorted(map(str, lacking))[0]
            raise Corrupt(f"its weights do not fit its configuration ({what.replace('_', ' ')}: {first})")
    model.eval()
    model.requires_grad_(False)
    try:
        return model.to(device)
    except Exception as error:
        if is_out_of_memory(error):
            raise MemoryError from None
        raise ConfigError(f"device {device}: {reason_of(error)}") from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch means that memory, the device's or the machine's, is not enough."""
    import torch

    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)
    )


@dataclass(frozen=True)
class Words:
    """A model's vocabulary and tokenizer.

    Attributes:
        strings: of each id what it spells; empty for what is left out.
        weak: ids that merely stand for single bytes.
        begin: the id that begins a text.
        tokenizer: reduced JSON that `kinds.SEGMENT` understands; None for longest match.
    """

    strings: list[bytes]
    weak: set[int]
    begin: int
    tokenizer: dict[str, Any] | None


def words_of(folder: Path, config: dict[str, Any]) -> Words:
    """The vocabulary of the model in a folder.

    Raises:
        Unsupported, Corrupt: its tokenizer is of a kind that does not tell what its ids spell.
        ConfigError: there is none.
    """
    tokens = import_module(kinds.TOKENS)
    settings: dict[str, Any] = {}
    if (folder / "tokenizer_config.json").is_file():
        settings = read_json(folder / "tokenizer_config.json")
    found = _tokenizer_json(folder)
    kind = (found.get("model") or {}).get("type") if isinstance(found.get("model"), dict) else None
    if kind == "Unigram":
        return _of_unigram(found, settings, config, tokens)
    made = tokens.from_json(found, settings, config)
    return Words(made.strings, set(made.weak), made.begin[0], made.tokenizer)


def _tokenizer_json(folder: Path) -> dict[str, Any]:
    if (folder / "tokenizer.json").is_file():
        return read_json(folder / "tokenizer.json")
    from transformers import AutoTokenizer

    try:
        with quiet():
            made = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        found = json.loads(made.backend_tokenizer.to_str())
    except Exception as error:  # of transformers: many kinds
        raise ConfigError(f"has no tokenizer.json, and transformers makes none: {reason_of(error)}") from None
    if not isinstance(found, dict):
        raise Corrupt("its tokenizer is no JSON object")
    return found


def _of_unigram(
    found: dict[str, Any], settings: dict[str, Any], config: dict[str, Any], tokens: Any
) -> Words:
    """Of a tokenizer that scores pieces: its ids spell like sentencepiece's; text is cut by longest match."""
    pieces = found["model"].get("vocab")
    if not isinstance(pieces, list) or len(pieces) > tokens.MAX_TOKENS:
        raise Corrupt("tokenizer.json has no vocabulary")
    strings = []
    for piece in pieces:
        if not isinstance(piece, list) or not piece or not isinstance(piece[0], str):
            raise Corrupt("tokenizer.json: a piece of the vocabulary is none")
        strings.append(tokens.from_piece(piece[0]))
    ids = {piece[0]: i for i, piece in reversed(list(enumerate(pieces)))}
    weak = {i for i, piece in enumerate(pieces) if re.fullmatch("<0x[0-9A-Fa-f]{2}>", piece[0])}
    unknown = found["model"].get("unk_id")
    if type(unknown) is int and 0 <= unknown < len(strings):
        strings[unknown] = b""
    added = [entry for entry in found.get("added_tokens") or [] if isinstance(entry, dict)]
    for entry in added:
        i, content = entry.get("id"), entry.get("content")
        if type(i) is not int or not 0 <= i < tokens.MAX_TOKENS or not isinstance(content, str):
            raise Corrupt("tokenizer.json has an added token that is none")
        strings += [b""] * (i + 1 - len(strings))
        strings[i] = b"" if entry.get("special") else content.encode(errors="ignore")
        ids[content] = i
    named = [settings.get("bos_token"), settings.get("eos_token")]
    texts = [name.get("content") if isinstance(name, dict) else name for name in named]
    order = [config.get("bos_token_id"), config.get("eos_token_id"), *(ids.get(str(t)) for t in texts)]
    begin = next((i for i in order if type(i) is int and i >= 0), None)
    if begin is None:
        raise Unsupported("its tokenizer names no token that begins or ends a text")
    return Words(strings, weak, begin, None)


def require_limit(files: list[Path], dtype: str, memory_limit: int | None) -> None:
    """Refuse a model that will take more than a limit, before its weights are read.

    Raises:
        LimitExceeded
    """
    nbytes = sum(file.stat().st_size for file in files)  # of at least two bytes a weight, most of them
    if memory_limit is not None and nbytes > memory_limit:
        raise LimitExceeded(
            f"loading it in {dtype} takes about {nbytes} bytes of memory, the limit is {memory_limit}; raise "
            "memory_limit"
        )
