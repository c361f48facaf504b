"""What the package requires, decided where it is built. scikit-build-core calls this; it is in no wheel.

constriction has wheels for some systems and no source archive. Environment markers tell those systems from
others, but no marker names the C library: a wheel for musl, as musllinux wheels are, must leave the
requirement out. The package does the same without it, byte for byte.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Mapping


def built_for_musl() -> bool:
    """Whether this Python's C library is musl."""
    names = ("HOST_GNU_TYPE", "MULTIARCH", "SOABI")
    return any("musl" in str(sysconfig.get_config_var(name)) for name in names)


def dynamic_metadata(field: str, settings: Mapping[str, list[str]]) -> list[str]:
    """The project's dependencies: `everywhere`, and `except-musl` where that is not the C library."""
    assert field == "dependencies"
    return settings["everywhere"] + ([] if built_for_musl() else settings["except-musl"])
