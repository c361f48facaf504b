"""Types of the native kernel (native/module.cpp)."""

import numpy as np

class Segmenter:
    def __init__(self, strings: np.ndarray, offsets: np.ndarray) -> None: ...
    def segment(self, data: np.ndarray, out: np.ndarray) -> int: ...
