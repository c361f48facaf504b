"""Types of the native kernel (native/module.cpp)."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

class Cancelled(Exception): ...

class Cancel:
    def __init__(self) -> None: ...
    def set(self) -> None: ...
    is_set: bool

class Segmenter:
    def __init__(self, strings: np.ndarray, offsets: np.ndarray) -> None: ...
    def segment(self, data: np.ndarray, out: np.ndarray) -> int: ...

FEATURES: list[str]
SELECTORS: list[str]
LM_FEATURES: list[str]
LM_SELECTORS: list[str]

class RangeEncoder:
    def __init__(self) -> None: ...
    def encode(self, bits: np.ndarray, p16: np.ndarray) -> None: ...
    def pos(self) -> tuple[int, tuple[int, int]]: ...
    def get_compressed(self) -> np.ndarray: ...

def range_widths(
    bits: np.ndarray, p16: np.ndarray, range: int, before: np.ndarray, after: np.ndarray
) -> int: ...
def mixing_isas() -> list[str]: ...
def token_loop_memory_nbytes(
    profile: Profile | None,
    n_token: int,
    stream_nbytes: int,
    block_nbytes: int,
    streams: int = 1,
    chained: bool = False,
    encoding: bool = False,
    enlarge: int = 0,
    tables_nbytes: int = 0,
) -> int: ...
def mixer_memory_nbytes(
    profile: Profile,
    block_nbytes: int,
    streams: int = 1,
    chained: bool = False,
    enlarge: int = 0,
    tables_nbytes: int = 0,
) -> int: ...

class Profile:
    def __init__(
        self,
        contexts: list[list[int]],
        selectors: list[int],
        apms: list[int],
        match_min: list[int],
        lm_maps: list[int],
        numbers: list[tuple[str, int]],
        max_learned: int = ...,
    ) -> None: ...
    n_learned: int
    n_input: int
    table_log2: int
    weights_at: int
    cells_at: int
    def set_learned(self, values: np.ndarray) -> None: ...

class BlockLoop:
    def __init__(
        self, profile: Profile, streams: int = 1, groups: int = 1, isa: str = "", enlarge: int = 0
    ) -> None: ...
    def begin(self, nbytes: int) -> None: ...
    def reset(self) -> None: ...
    def size_tables(self, nbytes: int) -> None: ...
    def mark(self) -> bool: ...
    def rewind(self) -> bool: ...
    def encode(self, data: np.ndarray, bits: np.ndarray, p16: np.ndarray) -> int: ...
    def trace(self, data: np.ndarray, bits: np.ndarray, p16: np.ndarray, offset: np.ndarray) -> int: ...
    def load(self, payload: np.ndarray) -> None: ...
    def decode(self, out: np.ndarray, n: int) -> bool: ...
    def push(self, bit: int) -> None: ...
    def use_cancel(self, cancel: Cancel | None) -> None: ...
    done: bool
    position: int
    offset: int
    p: int
    timed: bool
    times: dict[str, float]
    clock_times: dict[str, float]
    learned: np.ndarray
    isa: str

def decode_weights(
    data: np.ndarray,
    n_word: list[int],
    tensors: list[tuple[int, int, int]],
    row_class: np.ndarray,
    column_class: np.ndarray,
    freq: np.ndarray,
    out: np.ndarray,
    n_thread: int = 1,
    portable: bool = False,
) -> str: ...
def count_weights(
    weight: np.ndarray,
    row_class: np.ndarray,
    column_class: np.ndarray,
    counts: np.ndarray,
    n_thread: int = 1,
) -> None: ...
def encode_weights(
    weight: np.ndarray,
    row_class: np.ndarray,
    column_class: np.ndarray,
    freq: np.ndarray,
    n_thread: int = 1,
) -> list[bytes]: ...
def encode_planes(
    data: np.ndarray,
    base: np.ndarray | None,
    fields: Sequence[tuple[Any, ...]],
    row_nbytes: int = 0,
    contexts: bool = True,
    portable: bool = False,
    base_at: int = 0,
    cancel: Cancel | None = None,
) -> bytes: ...
def decode_planes(
    payload: np.ndarray,
    base: np.ndarray | None,
    out: np.ndarray,
    portable: bool = False,
    cancel: Cancel | None = None,
) -> str: ...
def decode_planes_to_bytes(
    payload: np.ndarray,
    base: np.ndarray | None,
    nbytes: int,
    portable: bool = False,
    cancel: Cancel | None = None,
) -> bytes | str: ...
def crc32(data: bytes | bytearray | memoryview | np.ndarray, value: int = 0) -> int: ...
def network_isas() -> list[str]: ...

class LanguageModel:
    n_token: int
    n_input: int
    def start_token(self, cut: bool) -> int: ...
    def session(self, streams: int, timed: bool = False) -> LmSession: ...

class LmSession:
    def begin(self, stream: int, cut: bool) -> None: ...
    def step(self, tokens: np.ndarray) -> None: ...
    def run(self, tokens: np.ndarray, freq: np.ndarray | None) -> None: ...
    def span(self, stream: int, low: int, high: int) -> int: ...
    def frequencies(self) -> np.ndarray: ...
    times: tuple[float, float, float]

class ExternalModel(LanguageModel):
    def __init__(
        self,
        n_token: int,
        start: int,
        start_cut: int,
        make: Callable[[int], object],
        exp2_coarse: np.ndarray,
        exp2_fine: np.ndarray,
        isa: str = "",
        steps_at_once: int = 256,
    ) -> None: ...

class RecurrentModel(LanguageModel):
    def __init__(
        self,
        vocab_size: int,
        dim: int,
        n_layer: int,
        recurrent: int,
        mlp: int,
        tensors: list[tuple[np.ndarray, np.ndarray | None, np.ndarray, int]],
        start: np.ndarray,
        tables: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, int],
        isa: str = "",
    ) -> None: ...
    isa: str

class RecurrentSession(LmSession):
    def __init__(
        self,
        model: RecurrentModel,
        streams: int,
        keep_logits: bool = False,
        timed: bool = False,
        helped: bool = False,
    ) -> None: ...
    def run(  # type: ignore[override]
        self, tokens: np.ndarray, logits: np.ndarray | None, freq: np.ndarray | None
    ) -> None: ...
    def cum(self, stream: int, token: int) -> int: ...
    def logits(self) -> np.ndarray: ...
    state: np.ndarray
    n_helped: int

class TransformerShape:
    def __init__(
        self,
        vocab_size: int,
        dim: int,
        n_layer: int,
        n_head: int,
        n_kv_head: int,
        head_dim: int,
        mlp: int,
        window: int,
        sinks: int,
        norm_eps: float,
        score_scale: float,
        logit_scale: float,
        qkv_bias: bool,
        qk_norm: bool,
        tied: bool,
        no_rotary: list[int],
        norm: str = "rms",
        pre_norm: bool = True,
        post_norm: bool = False,
        parallel: bool = False,
        qk_norm_whole: bool = False,
        gated: bool = True,
        activation: str = "silu",
        out_bias: bool = False,
        mlp_bias: bool = False,
        score_cap: float = 0.0,
        logit_cap: float = 0.0,
        n_position: int = 0,
        sliding: list[int] = [],
        sliding_window: int = 0,
        sliding_sinks: int = 0,
    ) -> None: ...
    def memory_nbytes(self) -> int: ...
    def session_memory_nbytes(self, streams: int, runs: bool) -> int: ...

class TransformerModel(LanguageModel):
    def __init__(
        self,
        shape: TransformerShape,
        tensors: list[tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]],
        vectors: list[np.ndarray],
        rotary: np.ndarray,
        exp2_coarse: np.ndarray,
        exp2_fine: np.ndarray,
        isa: str = "",
    ) -> None: ...
    isa: str

class TransformerSession(LmSession):
    def __init__(
        self,
        model: TransformerModel,
        streams: int,
        keep_logits: bool = False,
        timed: bool = False,
        helped: bool = False,
        cancel: Cancel | None = None,
    ) -> None: ...
    def run(  # type: ignore[override]
        self, tokens: np.ndarray, logits: np.ndarray | None = None, freq: np.ndarray | None = None
    ) -> None: ...
    def logits(self) -> np.ndarray: ...
    def pass_layers(self, x: np.ndarray, seen: list[tuple[np.ndarray, np.ndarray]]) -> None: ...
    attention_seconds: float
    n_helped: int

def factor_gram(matrix: np.ndarray, least: float, portable: bool = False) -> None: ...
def round_with_feedback(
    weight: np.ndarray, factor: np.ndarray, out: np.ndarray, portable: bool = False
) -> None: ...

class TokenCoding:
    def __init__(
        self, model: LanguageModel, strings: np.ndarray, offsets: np.ndarray, log2: np.ndarray
    ) -> None: ...

class TokenLoop:
    def __init__(
        self,
        coding: TokenCoding,
        profile: Profile | None,
        streams: int = 1,
        groups: int = 1,
        isa: str = "",
        enlarge: int = 0,
    ) -> None: ...
    def reset(self) -> None: ...
    def size_tables(self, nbytes: int) -> None: ...
    def mark(self) -> bool: ...
    def rewind(self) -> bool: ...
    def begin_encode(self, data: np.ndarray, tokens: np.ndarray, helped: bool = False) -> None: ...
    def encode(self, bits: np.ndarray, p16: np.ndarray) -> int: ...
    def trace(
        self, bits: np.ndarray, p16: np.ndarray, offset: np.ndarray, network_p16: np.ndarray
    ) -> int: ...
    def begin_decode(self, out: np.ndarray, payload: np.ndarray, helped: bool = False) -> None: ...
    def decode(self, n: int) -> bool: ...
    def push(self, bit: int) -> None: ...
    def use_cancel(self, cancel: Cancel | None) -> None: ...
    done: bool
    position: int
    p: int
    timed: bool
    times: dict[str, float]
    clock_times: dict[str, float]
    learned: np.ndarray
