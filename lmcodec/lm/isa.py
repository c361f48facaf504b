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
