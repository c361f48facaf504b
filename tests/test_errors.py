"""What every error of the package is: of one family, made of its message, able to pass between processes."""

from __future__ import annotations

import copy
import importlib
import pickle
import pkgutil
from collections.abc import Iterator

import pytest

import lmcodec
from lmcodec import _kernel
from lmcodec.errors import KernelMissing, LmcodecError, clear_frames

_OTHERS = ("__main__", "integrations", "torch", "hugging_face", "importing")  # need what may not be there


def classes() -> Iterator[type[BaseException]]:
    for module in pkgutil.walk_packages(lmcodec.__path__, "lmcodec."):
        if not any(name in module.name for name in _OTHERS):
            try:
                importlib.import_module(module.name)
            except ImportError:
                continue
    pending: list[type[BaseException]] = [LmcodecError, _kernel.Cancelled]
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        yield kind


def test_errors_pass_between_processes() -> None:
    """And can be raised again with a place before their message."""
    found = set(classes())
    assert len(found) >= 12
    for kind in found:
        error = kind("what was found, and what to do")
        again = [pickle.loads(pickle.dumps(error, n)) for n in range(pickle.HIGHEST_PROTOCOL + 1)]
        for other in [*again, copy.copy(error), copy.deepcopy(error)]:
            assert type(other) is kind
            assert (str(other), other.args) == (str(error), error.args)
        assert str(kind(f"here: {error}")) == f"here: {error}"


@pytest.mark.parametrize("reason", ["No module named 'lmcodec._kernel'", "undefined symbol: x"])
def test_a_missing_kernel_is_one_line(reason: str) -> None:
    error = KernelMissing.of("/somewhere/lmcodec", reason)
    assert isinstance(error, ImportError)
    assert "/somewhere/lmcodec" in str(error)
    assert "\n" not in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_what_the_caller_holds_is_not_cleared() -> None:
    """Of an error's calls, only those of the package lose their variables."""

    def callers() -> None:
        held = [1]
        try:
            raise KeyError
        except KeyError:
            held.append(2)
            lmcodec.decompress(b"no frame")

    with pytest.raises(LmcodecError) as raised:
        callers()
    clear_frames(raised.value)
    frames = [entry.frame for entry in raised.traceback]
    assert any(frame.f_locals.get("held") == [1, 2] for frame in frames)
    for frame in frames:
        if frame.f_globals["__name__"].startswith("lmcodec.codec.") and frame.code.name != "decompress":
            assert not frame.f_locals
