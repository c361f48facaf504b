"""Types of the native kernel (native/module.cpp)."""

import numpy as np

class Segmenter:
    def __init__(self, strings: np.ndarray, offsets: np.ndarray) -> None: ...
    def segment(self, data: np.ndarray, out: np.ndarray) -> int: ...

FEATURES: int
SELECTORS: int

def mixing_isas() -> list[str]: ...

class Profile:
    def __init__(
        self,
        contexts: list[list[int]],
        selectors: list[int],
        apms: list[int],
        match_min: list[int],
        numbers: list[tuple[str, int]],
    ) -> None: ...
    n_learned: int
    n_input: int
    weights_at: int
    def set_learned(self, values: np.ndarray) -> None: ...

class BlockCoder:
    def __init__(self, profile: Profile, streams: int = 1, groups: int = 1, isa: str = "") -> None: ...
    def begin(self, nbytes: int) -> None: ...
    def reset(self) -> None: ...
    def encode(self, data: np.ndarray, bits: np.ndarray, p16: np.ndarray) -> int: ...
    def load(self, payload: np.ndarray) -> None: ...
    def decode(self, out: np.ndarray, n: int) -> bool: ...
    def push(self, bit: int) -> None: ...
    done: bool
    offset: int
    p: int
    learned: np.ndarray
    isa: str
