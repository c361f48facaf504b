"""Which instruction set the environment asks for: LMCODEC_ISA, a developer's variable.

Encoding refuses a name that this machine does not know. Decoding depends on nothing in the environment: it
goes on as if there were none, since every instruction set gives the same bytes.
"""

from __future__ import annotations

import os

from lmcodec import _kernel
from lmcodec.errors import ConfigError

VARIABLE = "LMCODEC_ISA"


def require() -> None:
    """Refuse a name that neither the network nor the mixer can use here.

    Raises:
        ConfigError: LMCODEC_ISA is such a name.
    """
    asked = os.environ.get(VARIABLE, "")
    known = [*_kernel.network_isas(), *_kernel.mixing_isas()]
    if asked and asked not in known:
        raise ConfigError(
            f"{VARIABLE}={asked}: not an instruction set of this machine, which has "
            f"{', '.join(dict.fromkeys(known))}; unset it to let lmcodec choose"
        )


def is_usable() -> bool:
    """Whether LMCODEC_ISA is not set, or names what can be used here."""
    try:
        require()
    except ConfigError:
        return False
    return True


def chosen_isa(isa: str | None = None) -> str:
    """The instruction set to use: `isa`, else what the environment's LMCODEC_ISA names, else the best.

    What only the mixer has stands for what the network has of it (`avx512` for `avx512vnni`), or for the best
    there is: the machine may have AVX-512 without VNNI, NEON without the dot product.

    Raises:
        ConfigError: the machine has no such instruction set.
    """
    available = _kernel.network_isas()
    asked = isa or os.environ.get("LMCODEC_ISA", "")
    if not asked:
        return available[0]
    if asked not in available and asked in _kernel.mixing_isas():
        return next((name for name in available if name.startswith(asked)), available[0])
    if asked not in available:
        named = asked if isa else f"LMCODEC_ISA={asked}"
        raise ConfigError(
            f"{named}: not an instruction set that the network can use on this machine, which has "
            f"{', '.join(available)}; unset LMCODEC_ISA to let lmcodec choose"
        )
    return asked


def usable() -> str:
    """`chosen_isa`, or the best one where LMCODEC_ISA names none of this machine: for decoding."""
    return chosen_isa(None if is_usable() else _kernel.network_isas()[0])
