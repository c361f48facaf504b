"""Profiles: frozen, numbered choices of contexts, rates and starting values of the context mixer.

A profile's file holds its specification and what the mixer's adaptive state begins with, learned on
training text. The files of numbers that frames can name never change (`models.PROFILES`); tuning makes a
new number. FORMAT.md section 5.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from lmcodec import _kernel, models
from lmcodec.errors import Corrupt, Unsupported

# What contexts and selectors may be, in the order of the kernel's enums (native/features.def, selectors.def).
FEATURES: list[str] = _kernel.FEATURES
SELECTORS: list[str] = _kernel.SELECTORS
# Of profiles whose number lm is 1.
LM_FEATURES: list[str] = _kernel.LM_FEATURES
LM_SELECTORS: list[str] = _kernel.LM_SELECTORS

_MAGIC = b"LMZP\x01"
_HEADER = struct.Struct("<II")  # bytes of the specification, of the learned values
MAX_SPEC_NBYTES = 1 << 16
MAX_PROFILES = 31  # of a model: as many as a block's header can name
MAX_LEARNED = (
    1 << 22
)  # values that the profiles of a model learn together; the kernel's bound for one of them
_XZ_NBYTES = 68 << 20  # what unpacking takes at most; `pack` asks for 65 MiB

FROZEN = models.PROFILES


@dataclass(frozen=True)
class Profile:
    """A profile as loaded: its specification and the kernel's object."""

    spec: dict[str, Any]
    kernel: _kernel.Profile

    @property
    def table_nbytes(self) -> int:
        """Bytes of the slot table at its largest."""
        return 1 << self.kernel.table_log2


def build(spec: dict[str, Any], max_learned: int = MAX_LEARNED) -> Profile:
    """The profile of a specification, its learned state neutral.

    Args:
      spec: `contexts` (lists of names of FEATURES), `selectors` and `maps` (names of SELECTORS), `matches`
        (shortest matches in bytes; what selectors see is the first one's state), `numbers`; with a language
        model also `lm_maps` (names of SELECTORS), the maps that refine its probability.
      max_learned: values that it may learn; checked before anything is allocated for them.

    Raises:
      KeyError, ValueError: a name or a number the kernel does not know, or too many learned values.
    """
    feature = {name: i for i, name in enumerate(FEATURES)}
    selector = {name: i for i, name in enumerate(SELECTORS)}
    kernel = _kernel.Profile(
        [[feature[name] for name in context] for context in spec["contexts"]],
        [selector[name] for name in spec["selectors"]],
        [selector[name] for name in spec["maps"]],
        list(spec["matches"]),
        [selector[name] for name in spec.get("lm_maps", [])],
        list(spec["numbers"].items()),
        max_learned,
    )
    return Profile(spec, kernel)


def pack(spec: dict[str, Any], learned: np.ndarray, count_limit: int = 255) -> bytes:
    """The file of a profile that begins with `learned` (n_learned,) uint32, as BlockLoop.learned gives it.

    Probabilities are kept to 16 bits, counts up to `count_limit`, weights to 12 bits behind the point.

    Raises:
      ValueError: the learned state is another profile's.
    """
    kernel = build(spec).kernel
    if learned.shape != (kernel.n_learned,):
        raise ValueError(f"learned state of shape {learned.shape}, the profile's is ({kernel.n_learned},)")
    n_map = kernel.weights_at
    maps, weights = learned[:n_map], learned[n_map:].view(np.int32)
    p16 = np.clip((maps >> 10) + 32 >> 6, 1, 65535).astype("<u2")
    count = np.minimum(maps & 1023, min(count_limit, 255)).astype(np.uint8)
    w12 = np.clip(weights + 8 >> 4, -32767, 32767).astype("<i2")
    # Bytes of equal weight lie together: xz finds more.
    body = b"".join(
        [
            p16.tobytes(),
            count.tobytes(),
            (w12 & 255).astype(np.uint8).tobytes(),
            (w12 >> 8).astype(np.int8).tobytes(),
        ]
    )
    packed = lzma.compress(body, format=lzma.FORMAT_XZ, preset=9 | lzma.PRESET_EXTREME)
    text = json.dumps(spec, separators=(",", ":")).encode()
    return _MAGIC + _HEADER.pack(len(text), len(packed)) + text + packed


def parse(data: bytes, where: str = "profile") -> Profile:
    """The profile in a file's bytes.

    Raises:
      Corrupt: the file is not what `pack` writes.
    """
    profile, end = _parse_at(data, 0, where)
    if end != len(data):
        raise Corrupt(
            f"{where}: not a profile of this version ({len(data)} bytes, {end} expected); reinstall lmcodec"
        )
    return profile


def parse_all(data: bytes, where: str = "profiles") -> list[Profile]:
    """The profiles of a language model in files' bytes, one after another; none in no bytes.

    Raises:
      Corrupt: they are not what `pack` writes, not for a language model, or more than a model may have.
    """
    profiles: list[Profile] = []
    at, room = 0, MAX_LEARNED
    while at < len(data):
        if len(profiles) == MAX_PROFILES:
            raise Corrupt(f"{where}: more than {MAX_PROFILES} profiles")
        profile, at = _parse_at(data, at, where, room, for_model=True)
        room -= profile.kernel.n_learned
        profiles.append(profile)
    return profiles


def _parse_at(
    data: bytes, start: int, where: str, max_learned: int = MAX_LEARNED, for_model: bool = False
) -> tuple[Profile, int]:
    """The profile at data[start:] and where it ends."""
    try:
        at = start + len(_MAGIC)
        if data[start:at] != _MAGIC:
            raise ValueError("wrong magic")
        n_text, n_packed = _HEADER.unpack_from(data, at)
        at += _HEADER.size
        end = at + n_text + n_packed
        if len(data) < end:
            raise ValueError(f"{len(data) - start} bytes, {end - start} expected")
        if n_text > MAX_SPEC_NBYTES:
            raise ValueError(f"a specification of {n_text} bytes, at most {MAX_SPEC_NBYTES}")
        spec = json.loads(data[at : at + n_text])
        if for_model and spec["numbers"].get("lm") != 1:
            raise ValueError("a profile is for blocks without a language model")
        profile = build(spec, max_learned)
        n_learned, n_map = profile.kernel.n_learned, profile.kernel.weights_at
        size = n_map * 3 + (n_learned - n_map) * 2
        body = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_NBYTES).decompress(
            data[at + n_text : end], size + 1
        )
        if len(body) != size:
            raise ValueError(f"{len(body)} bytes of learned state, {size} expected")
        p16 = np.frombuffer(body, "<u2", n_map).astype(np.uint32)
        count = np.frombuffer(body, np.uint8, n_map, 2 * n_map).astype(np.uint32)
        learned = np.empty(n_learned, np.uint32)
        learned[:n_map] = p16 << 16 | count
        values = learned[n_map:].view(np.int32)
        values[:] = np.frombuffer(body, np.int8, n_learned - n_map, 2 * n_map + n_learned)
        values <<= 8
        values |= np.frombuffer(body, np.uint8, n_learned - n_map, 3 * n_map)
        values <<= 4
        cells = values[profile.kernel.cells_at - n_map :]
        np.minimum(cells, 65535, out=cells)  # 2^16 stands for the largest cell there is
        profile.kernel.set_learned(learned)
    except (ValueError, lzma.LZMAError, struct.error) as error:
        raise Corrupt(f"{where}: not a profile of this version ({error}); reinstall lmcodec") from None
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise Corrupt(
            f"{where}: not a profile of this version (wrong specification); reinstall lmcodec"
        ) from None
    return profile, end


@cache
def load(number: int) -> Profile:
    """The frozen profile that frames name by `number`.

    Raises:
      Unsupported: there is none of that number.
      Corrupt: its file is not the one this version was released with.
    """
    if number not in FROZEN:
        raise Unsupported(
            f"profile {number} is unknown to this version, which knows 1 to {max(FROZEN)}; upgrade lmcodec"
        )
    name, digest = FROZEN[number]
    file = f"profile-{number}.lmp"
    data = (Path(models.__file__).parent / file).read_bytes()
    if not hashlib.sha256(data).hexdigest().startswith(digest):
        raise Corrupt(f"{file}: not the {name!r} profile that belongs to this version; reinstall lmcodec")
    return parse(data, file)
