"""Any causal model that transformers can load, in floats, behind the seam of `lm.interface`.

Its integers are its logits, rounded. Since a float depends on the machine, the libraries and the shape of
what is computed, both directions take the same steps: one token of each of the B streams at a time, with a
cache of one shape, never many positions at once. Where the cache is full after W tokens it is emptied, and
the last half of them is fed again in one piece; so are models with absolute positions. A model whose state
does not grow (state spaces) never begins anew. What is recorded and compared is in `Fingerprint`.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import platform
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from lmcodec.errors import ConfigError, Corrupt, LmcodecError, Unsupported, reason_of
from lmcodec.lm import kinds
from lmcodec.lm.bound import BoundModel, Fingerprint
from lmcodec.lm.hugging_face import loading
from lmcodec.lm.interface import Session
from lmcodec.lm.vocab import Buffer, Vocabulary

STEPS = 1  # version of what this module does with a model's floats
WINDOW = 1024  # tokens that the cache holds, unless the caller or the model says otherwise
MIN_WINDOW = 16
LEAST = -(1 << 22)  # the logit of a byte that no token spells; others are held within its size
_SCALE = 256 / math.log(2)  # natural logarithms to steps of 2^-8 of a binary one
_CACHES = ("cache", "past_key_values", "cache_params", "state")  # what models call it
_POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length")
_PROBE = 6  # steps that are compared with many positions at once when a model is loaded
_SETTINGS = {"attention": str, "cache": str, "dtype": str, "steps": int, "threads": int, "window": int}


class _Loaded:
    """Weights on a device; several models with other settings share them."""

    def __init__(self, folder: Path, name: str, device: str, dtype: str, attention: str | None) -> None:
        self.folder, self.name, self.device, self.dtype = folder, name, device, dtype
        files = loading.weight_files(folder)
        self.config = loading.read_json(folder / "config.json")
        self.sha256 = loading.digest_of(files, self.config)
        self.words = loading.words_of(folder, self.config)
        self.network = loading.load_weights(folder, device, dtype, attention)
        self.attention = str(getattr(self.network.config, "_attn_implementation", None) or "none")
        self.lock = threading.Lock()
        parameters = inspect.signature(self.network.forward).parameters
        self.cache_name = next((name for name in _CACHES if name in parameters), None)
        self.keeps_few = "logits_to_keep" in parameters
        self.n_weight = sum(p.numel() for p in self.network.parameters())
        self.nbytes = sum(p.numel() * p.element_size() for p in self.network.parameters())
        strings, ids, self.n_row = _vocabulary(self)
        self.vocabulary, self.ids = Vocabulary(strings), ids

    @property
    def most_positions(self) -> int | None:
        """Positions that the model knows; None if they have no end."""
        config = self.network.config
        found = [getattr(config, name, None) for name in _POSITIONS]
        if found and any(type(n) is int and n > 0 for n in found):
            return min(n for n in found if type(n) is int and n > 0)
        return None

    @property
    def has_fixed_state(self) -> bool:
        """Whether its state is as large after any number of tokens: no attention, no positions."""
        config = self.network.config
        stateful = bool(getattr(self.network, "_is_stateful", False)) or self.cache_name == "state"
        attends = getattr(config, "num_attention_heads", None) or getattr(config, "attn_layer_indices", None)
        return stateful and self.most_positions is None and not attends


def _vocabulary(loaded: _Loaded) -> tuple[list[bytes], np.ndarray, int]:
    """Sorted strings, the id of each (-1 for a byte that no id spells), rows of the model's output."""
    head = loaded.network.get_output_embeddings()
    n_row = int(head.weight.shape[0]) if head is not None else int(loaded.network.config.vocab_size)
    words = loaded.words
    ids: dict[bytes, int] = {}
    usual = [i for i in range(len(words.strings)) if i not in words.weak]
    for i in [*usual, *sorted(words.weak)]:
        if i < min(n_row, len(words.strings)) and words.strings[i]:
            ids.setdefault(words.strings[i], i)
    for byte in range(256):
        ids.setdefault(bytes([byte]), -1)
    if words.begin >= n_row:
        raise Corrupt(f"token {words.begin} begins a text, the model has {n_row}")
    strings = sorted(ids)
    return strings, np.array([ids[string] for string in strings], np.int64), n_row


class HuggingFaceModel(BoundModel):
    """A causal model in floats.

    Args:
        loaded: its weights.
        settings: how it is run; see `open_model`.

    Attributes:
        name: a folder's name, or the hub's id.
    """

    def __init__(self, loaded: _Loaded, settings: Mapping[str, Any]) -> None:
        self._loaded, self._settings = loaded, dict(settings)
        self.name = loaded.name
        self.vocabulary = loaded.vocabulary
        v = len(self.vocabulary)
        self.start_tokens = v, v + 1
        self.model_id = f"transformers {loaded.sha256} {loaded.words.begin}"
        self.nbytes = loaded.nbytes
        self.macs_per_token = loaded.n_weight
        self._segment = _segmenter(loaded)
        ids = np.append(loaded.ids, [-1, -1])
        self._inputs = np.where(ids < 0, loaded.words.begin, ids)
        with loading.quiet():  # what a model's first step says
            if not self._settings.get("cache"):
                self._settings["cache"] = self._find_cache()
            self.stream_nbytes = self._measure_stream()

    def session(self, n_stream: int) -> Session:
        return _Session(self, n_stream)

    def segment(self, data: Buffer) -> np.ndarray:
        return self._segment(data)

    @property
    def settings(self) -> Mapping[str, Any]:
        """How steps are made: JSON values by name."""
        return dict(self._settings)

    @property
    def torch_model(self) -> Any:
        """The model in torch."""
        return self._loaded.network

    @property
    def device(self) -> str:
        return self._loaded.device

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self._loaded.folder

    @property
    def begin_id(self) -> int:
        """The id that begins a text."""
        return self._loaded.words.begin

    @property
    def ids(self) -> np.ndarray:
        """(V,) int64: of each token of the vocabulary the model's id, -1 for a byte that none spells."""
        return self._loaded.ids

    @property
    def most_positions(self) -> int | None:
        """Positions that the model knows; None if they have no end."""
        return self._loaded.most_positions

    @property
    def fingerprint(self) -> Fingerprint:
        loaded = self._loaded
        return Fingerprint(loaded.name, loaded.sha256, self._settings, environment(loaded.device))

    def with_settings(self, settings: Mapping[str, Any]) -> BoundModel:
        settings = checked_settings(settings)
        loaded = self._loaded
        if (settings["dtype"], settings["attention"]) != (loaded.dtype, loaded.attention):
            loaded = _load(
                loaded.folder, loaded.name, loaded.device, settings["dtype"], settings["attention"]
            )
        return HuggingFaceModel(loaded, settings)

    def inputs(self, tokens: np.ndarray) -> np.ndarray:
        """What the model is fed for tokens: what no id spells counts as the beginning of a text."""
        return self._inputs[np.minimum(tokens, len(self.vocabulary) + 1)]

    def computing(self) -> Any:
        """A context in which `forward` may be called."""
        return computing(self._loaded, self._settings["threads"])

    def forward(self, ids: Any, k: int) -> Any:
        """(k, rows) logits at the last k positions of (1, n) ids, all at once; on the device.

        Raises:
            MemoryError: there is not enough.
            Unsupported: the model fails.
        """
        options = {"logits_to_keep": k} if self._loaded.keeps_few else {}
        try:
            return self._loaded.network(input_ids=ids, use_cache=False, **options).logits[0, -k:]
        except Exception as error:  # of torch and of the model
            raise _clear(error) from None

    def own_tokenizer(self) -> tuple[Callable[[str], Any] | None, int | None]:
        """What makes ids of text as transformers does, no token added; and its BOS token, or EOS.

        None for both where transformers has no tokenizer for the model.
        """
        from transformers import AutoTokenizer

        try:
            with loading.quiet():
                made = AutoTokenizer.from_pretrained(
                    str(self.folder), local_files_only=True, trust_remote_code=False
                )
        except Exception:  # of transformers: many kinds
            return None, None
        begin = made.bos_token_id if made.bos_token_id is not None else made.eos_token_id
        if begin is None:
            return None, None

        def encode(text: str) -> Any:
            with loading.quiet():
                return made.encode(text, add_special_tokens=False)

        return encode, int(begin)

    def _find_cache(self) -> str:
        """The kind of cache with which steps give what many positions at once give, near enough."""
        import torch

        draw = np.random.default_rng(1)
        tokens = draw.integers(0, len(self.vocabulary), (_PROBE, 2))
        window = self._settings["window"]
        if window and window < _PROBE:
            raise ConfigError(f"window is {window}, expected at least {MIN_WINDOW}")
        with computing(self._loaded, self._settings["threads"]):
            ids = torch.tensor(self.inputs(tokens).T, device=self.device)
            try:
                whole = self._loaded.network(input_ids=ids, use_cache=False).logits.float()
            except Exception as error:
                raise _clear(error) from None
        near = (1e-3 if self._settings["dtype"] == "float32" else 0.1) * max(1.0, float(whole.abs().max()))
        for kind in ("static", "dynamic") if self._loaded.cache_name else ():
            self._settings["cache"] = kind
            try:
                session = _Session(self, 2)
                with computing(self._loaded, self._settings["threads"]):
                    rows = [session.floats(self.inputs(row)) for row in tokens]
                far = float((torch.stack(rows, dim=1) - whole).abs().max())
            except MemoryError:
                raise
            except Exception:  # of a model that does not know this kind of cache: the next one is tried
                continue
            if far <= near:
                return kind
        return "none"

    def _measure_stream(self) -> int:
        """Bytes of the cache of a stream, as one step of one stream makes it."""
        session = _Session(self, 1)
        with computing(self._loaded, self._settings["threads"]):
            session.floats(np.array([self.begin_id]))
            nbytes = _tensors_nbytes(session.cache)
        window = max(self._settings["window"], 1)
        return nbytes if self._settings["cache"] == "static" else nbytes * window


def _tensors_nbytes(found: Any, depth: int = 4) -> int:
    """Bytes of all tensors in a cache, whatever its form."""
    if hasattr(found, "element_size"):
        return int(found.numel() * found.element_size())
    if depth == 0 or found is None or isinstance(found, (str, bytes, int, float)):
        return 0
    if isinstance(found, dict):
        inside: Any = found.values()
    elif isinstance(found, (list, tuple)):
        inside = found
    else:
        inside = getattr(found, "__dict__", {}).values()
    return sum(_tensors_nbytes(each, depth - 1) for each in inside)


class _Session(Session):
    """States of B streams, which begin together.

    Attributes:
        cache: what the model has made of the tokens so far.
    """

    def __init__(self, model: HuggingFaceModel, n_stream: int) -> None:
        self._model, self._n_stream = model, n_stream
        self._loaded = model._loaded
        self._window, self._kind = model.settings["window"], model.settings["cache"]
        self._threads = model.settings["threads"]
        self._n = 0  # tokens in the cache
        # The last tokens: those that are fed again, or all.
        self._last = deque[np.ndarray](maxlen=None if self._kind == "none" else self._window // 2)
        self.cache: Any = None
        import torch

        index = torch.tensor(np.maximum(self._loaded.ids, 0), device=self._loaded.device)
        self._index = None if bool((index == torch.arange(len(index), device=index.device)).all()) else index
        lacking = np.flatnonzero(self._loaded.ids < 0)
        self._lacking = torch.tensor(lacking, device=self._loaded.device) if len(lacking) else None

    def begin(self, stream: int, cut: bool) -> None:
        if self._n:
            raise ValueError("the streams of a model in floats begin together")

    def step(self, tokens: np.ndarray) -> np.ndarray:
        import torch

        if len(tokens) != self._n_stream:
            raise ValueError(f"{len(tokens)} tokens for {self._n_stream} streams")
        with computing(self._loaded, self._threads):
            try:
                logits = self.floats(self._model.inputs(tokens))
                if self._index is not None:
                    logits = logits[:, self._index]
                logits = logits[:, : len(self._model.vocabulary)]
                if bool(torch.isnan(logits).any()):
                    raise Unsupported(f"{self._loaded.name}: a logit of the model is not a number")
                # A difference, so that a common offset cannot leave the range.
                logits = logits - logits.amax(dim=-1, keepdim=True)
                steps = (logits * _SCALE).clamp_(LEAST, 0).round_().to(torch.int32)
                if self._lacking is not None:
                    steps[:, self._lacking] = LEAST
                return steps.cpu().numpy()
            except (LmcodecError, MemoryError):
                raise
            except Exception as error:  # of torch and of the model
                raise _clear(error) from None

    def floats(self, ids: np.ndarray) -> Any:
        """(B, rows) float32 logits after (B,) ids more; on the device."""
        if self._kind == "none":
            if self._window and len(self._last) == self._window:
                self._last = deque(list(self._last)[-(self._window // 2 - 1) :])
            self._last.append(ids)
            return self._forward(np.stack(self._last, axis=1), False)
        if self._window and self._n == self._window:
            again = list(self._last)[-(self._window // 2 - 1) :]
            self.cache, self._n = None, 0
            if self._loaded.keeps_few:
                self._forward(np.stack(again, axis=1), True)
            else:
                for row in again:
                    self._forward(row[:, None], True)
            self._n = len(again)
        self._last.append(ids)
        logits = self._forward(ids[:, None], True)
        self._n += 1
        return logits

    def _forward(self, ids: np.ndarray, caches: bool) -> Any:
        import torch

        loaded = self._loaded
        options: dict[str, Any] = {"use_cache": caches}
        if loaded.keeps_few:
            options["logits_to_keep"] = 1
        if caches:
            if self.cache is None and self._kind == "static":
                self.cache = _static_cache(loaded.network.config, self._window or WINDOW)
            if self.cache is not None:
                options[str(loaded.cache_name)] = self.cache
        out = loaded.network(input_ids=torch.tensor(ids, device=loaded.device), **options)
        if caches:
            self.cache = next((out[name] for name in _CACHES if out.get(name) is not None), None)
            if self.cache is None:
                raise Unsupported(f"{loaded.name}: the model gives no cache back")
        return out.logits[:, -1].float()


def _static_cache(config: Any, window: int) -> Any:
    from transformers import StaticCache

    return StaticCache(config=config, max_cache_len=window)


def _clear(error: BaseException) -> BaseException:
    """What a caller gets to see of an error of torch or transformers."""
    if isinstance(error, (LmcodecError, MemoryError)):
        return error
    if loading.is_out_of_memory(error):
        return MemoryError()
    return Unsupported(f"transformers cannot run the model: {reason_of(error)}")


@contextmanager
def computing(loaded: _Loaded, threads: int) -> Any:
    """One block's step at a time, without gradients, in so many threads, in full float32 products."""
    import torch

    from lmcodec.lm import torch_device

    with loaded.lock, torch.inference_mode(), torch_device.exact(torch.device(loaded.device)):
        before = torch.get_num_threads()
        if before != threads:
            torch.set_num_threads(threads)
        try:
            yield
        finally:
            if before != threads:
                torch.set_num_threads(before)


def environment(device: str) -> dict[str, str]:
    """What a model's floats depend on here, by name."""
    import torch
    import transformers

    found = {
        "device": device.partition(":")[0],
        "system": f"{platform.system()} {platform.machine()}",
        "torch": str(torch.__version__),
        "transformers": str(transformers.__version__),
    }
    if device == "cpu":
        found["processor"] = _processor()
        found["isa"] = str(torch.backends.cpu.get_cpu_capability())
    else:
        found["processor"] = torch.cuda.get_device_name(torch.device(device))
        found["cuda"] = f"{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    return found


@cache
def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def checked_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a frame, if this module can run a model so.

    Raises:
        Unsupported: it cannot.
    """
    known = set(_SETTINGS)
    if set(settings) != known or any(type(settings[name]) is not kind for name, kind in _SETTINGS.items()):
        raise Unsupported(
            f"the frame's settings of the model are {', '.join(sorted(settings))}; this lmcodec knows "
            f"{', '.join(sorted(known))}"
        )
    if settings["steps"] != STEPS:
        raise Unsupported(f"steps of version {settings['steps']}; this lmcodec makes version {STEPS}")
    if settings["dtype"] not in loading.DTYPES:
        raise Unsupported(f"type {settings['dtype'][:40]!r}; known are {', '.join(loading.DTYPES)}")
    if settings["cache"] not in ("static", "dynamic", "none"):
        raise Unsupported(f"a cache of kind {settings['cache'][:40]!r}; known are static, dynamic and none")
    if settings["attention"] not in ("eager", "sdpa", "none"):
        raise Unsupported(f"attention {settings['attention'][:40]!r}; known are eager and sdpa")
    if not 1 <= settings["threads"] <= 1024:
        raise Unsupported(f"{settings['threads']} threads; 1 to 1024 can be used")
    if settings["window"] and not MIN_WINDOW <= settings["window"] <= 1 << 22:
        raise Unsupported(f"a window of {settings['window']}; {MIN_WINDOW} to 2^22 can be used")
    return dict(settings)


_kept: weakref.WeakValueDictionary[tuple[object, ...], _Loaded] = weakref.WeakValueDictionary()
_kept_lock = threading.Lock()


def _load(folder: Path, name: str, device: str, dtype: str, attention: str | None) -> _Loaded:
    """Weights, from memory if they are there and their files have not changed."""
    with _kept_lock:
        for known in (attention, "sdpa", "eager", "none") if attention is None else (attention,):
            key = str(folder), device, dtype, known, stamp(str(folder))
            if (found := _kept.get(key)) is not None:
                return found
        given = None if attention == "none" else attention
        loaded = _Loaded(folder, name, device, dtype, given)
        _kept[str(folder), device, dtype, loaded.attention, stamp(str(folder))] = loaded
        return loaded


def stamp(reference: str) -> tuple[object, ...]:
    """What changes when the files of a folder change; of a hub id nothing."""
    found = []
    try:
        for entry in sorted(os.scandir(reference), key=lambda entry: entry.name):
            if entry.name.endswith((".safetensors", ".json", ".model")):
                status = entry.stat()
                found.append((entry.name, status.st_mtime_ns, status.st_size))
    except OSError:
        pass
    return tuple(found)


def open_model(
    reference: str,
    device: str = "cpu",
    *,
    settings: Mapping[str, Any] | None = None,
    dtype: str | None = None,
    window: int | None = None,
    download: bool = False,
    memory_limit: int | None = None,
) -> HuggingFaceModel:
    """A causal model of transformers.

    Args:
        reference: a folder, or a hub id, OWNER/NAME.
        device: "cpu", "cuda" or "cuda:n".
        settings: of a frame, which decide how it is run; None to choose.
        dtype: "float32", "bfloat16" or "float16"; float32 if None.
        window: tokens that the cache holds; None for 1,024, or fewer where the model knows fewer positions.
        download: fetch a hub model; otherwise only the local cache is looked into.
        memory_limit: bytes that its weights may take.

    Raises:
        ConfigError: there is no such model, a package is missing, or transformers cannot load it.
        LmcodecError: it cannot be used.
    """
    for package in ("torch", "transformers", "safetensors"):
        try:
            import_module(package)
        except ImportError:
            raise ConfigError(
                f"hf:{reference}: needs the package {package}; pip install 'lmcodec[hf]'"
            ) from None
    from lmcodec.lm import torch_device

    torch_device.find(device)
    folder = loading.folder_of(reference, download)
    name = folder.resolve().name if Path(reference).is_dir() else reference
    try:
        chosen = checked_settings(settings) if settings is not None else None
        if dtype is not None and dtype not in loading.DTYPES:
            raise ConfigError(f"type {dtype!r}, expected {', '.join(loading.DTYPES)}")
        type_of_floats = chosen["dtype"] if chosen else dtype or "float32"
        loading.require_limit(loading.weight_files(folder), type_of_floats, memory_limit)
        loaded = _load(folder, name, device, type_of_floats, chosen["attention"] if chosen else None)
        if chosen is None:
            import torch

            chosen = {
                "attention": loaded.attention,
                "cache": "",
                "dtype": loaded.dtype,
                "steps": STEPS,
                "threads": torch.get_num_threads(),
                "window": _window(loaded, window),
            }
        return HuggingFaceModel(loaded, chosen)
    except LmcodecError as error:
        raise type(error)(f"hf:{reference}: {error}") from None


def _window(loaded: _Loaded, asked: int | None) -> int:
    most = loaded.most_positions
    if asked is None:
        return 0 if loaded.has_fixed_state else min(WINDOW, most or WINDOW)
    if not MIN_WINDOW <= asked <= (most or 1 << 22):
        raise ConfigError(f"window is {asked}, expected {MIN_WINDOW} to {most or 1 << 22}")
    return asked


def _segmenter(loaded: _Loaded) -> Callable[[Buffer], np.ndarray]:
    """What cuts text as the model was trained."""
    tokenizer = loaded.words.tokenizer
    if tokenizer is None:
        return loaded.vocabulary.segment
    text = json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
    made = import_module(kinds.SEGMENT).Segmenter(loaded.vocabulary, lambda: text)
    segment: Callable[[Buffer], np.ndarray] = made
    return segment
