"""The tables of the integer model are what 60-digit decimal arithmetic gives, to the last bit."""

from __future__ import annotations

import decimal
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

import lmcodec
from lmcodec.lm import tables as shared_tables
from lmcodec.lm.recurrent import tables
from lmcodec.lm.recurrent.shape import MAX_FAN_IN

# Committed: the tables are part of the format.
DIGEST = "2309538abdfebc80e33b0ace441e32bcba6e8eac06e839e24ec2833c5c5818a9"

TABLES: dict[str, Callable[[], np.ndarray]] = {
    name: getattr(tables if name in ("decay", "input_scale", "relu2", "rsqrt") else shared_tables, name)
    for name in ("decay", "input_scale", "relu2", "rsqrt", "exp2_coarse", "exp2_fine", "exp2", "log2")
}


@pytest.fixture(autouse=True)
def digits() -> Iterator[None]:
    with decimal.localcontext() as context:
        context.prec = 60
        yield


def rounded(value: Decimal) -> int:
    """To the nearest, halves up."""
    return int((value + Decimal("0.5")).to_integral_value(decimal.ROUND_FLOOR))


def sigmoid(z: int) -> Decimal:
    return 1 / (1 + (-Decimal(z) / 16).exp())


def power_of_two(exponent: Decimal) -> Decimal:
    return (exponent * Decimal(2).ln()).exp()


EXACT: dict[str, Callable[[], list[Decimal]]] = {
    "decay": lambda: [65536 * sigmoid(z) for z in range(-127, 128)],
    "input_scale": lambda: [65536 * (1 - sigmoid(z) ** 2 + Decimal("1e-7")).sqrt() for z in range(-127, 128)],
    "relu2": lambda: [Decimal(m * m) / 128 for m in range(128)],
    "rsqrt": lambda: [2**31 / ((i + Decimal("0.5")) * 2**18).sqrt() for i in range(4096, 16384)],
    "exp2_coarse": lambda: [2**15 * power_of_two(Decimal(-a) / 16) for a in range(16)],
    "exp2_fine": lambda: [2**16 * power_of_two(Decimal(-b) / 256) for b in range(16)],
    "log2": lambda: [2**16 * (1 + (i + Decimal("0.5")) / 1024).ln() / Decimal(2).ln() for i in range(1024)],
}


@pytest.mark.parametrize("name", EXACT)
def test_correctly_rounded(name: str) -> None:
    assert TABLES[name]().tolist() == [rounded(x) for x in EXACT[name]()]


def test_exp2_is_the_product_of_its_halves() -> None:
    coarse, fine = tables.exp2_coarse().tolist(), tables.exp2_fine().tolist()
    assert shared_tables.exp2().tolist() == [coarse[f // 16] * fine[f % 16] // 128 for f in range(256)]
    assert shared_tables.exp2()[0] == 1 << 24
    # Half a unit of either half times the other, and the cut: (2^15 + 2^14) / 2^7 + 1.
    errors = [
        abs(e - 2**24 * power_of_two(Decimal(-f) / 256)) for f, e in enumerate(shared_tables.exp2().tolist())
    ]
    assert max(errors) < 385


def test_norm_scale_is_a_floor() -> None:
    for dim in range(16, MAX_FAN_IN + 1):
        scale = tables.norm_scale(dim)
        assert scale**2 <= dim << 20 < (scale + 1) ** 2
        assert scale < 1 << 16


@pytest.mark.parametrize(
    ("name", "size", "low", "high"),
    [
        ("decay", 255, 23, (1 << 16) - 23),
        ("input_scale", 255, 1, 1 << 16),
        ("relu2", 128, 0, 126),
        ("rsqrt", 12288, 1 << 15, 1 << 16),
        ("exp2_coarse", 16, 1 << 14, 1 << 15),
        ("exp2_fine", 16, 1 << 15, 1 << 16),
        ("exp2", 256, 1 << 23, 1 << 24),
        ("log2", 1024, 0, 1 << 16),
    ],
)
def test_size_and_range(name: str, size: int, low: int, high: int) -> None:
    table = TABLES[name]()
    assert table.shape == (size,)
    assert table.dtype == (np.int8 if name == "relu2" else np.int32)
    assert low <= table.min() <= table.max() <= high


def test_monotone() -> None:
    for name, direction in (("decay", 1), ("relu2", 1), ("log2", 1), ("input_scale", -1), ("rsqrt", -1)):
        assert (np.diff(TABLES[name]().astype(np.int64)) * direction >= 0).all(), name
    for name in ("exp2_coarse", "exp2_fine", "exp2"):
        assert (np.diff(TABLES[name]()) < 0).all(), name


def test_decay_is_symmetric() -> None:
    # No entry is a half, so rounding up and down agree.
    assert (tables.decay() + tables.decay()[::-1] == 1 << 16).all()


@pytest.mark.parametrize("name", TABLES)
def test_read_only(name: str) -> None:
    with pytest.raises(ValueError, match="read-only"):
        TABLES[name]()[0] = 0


def test_digest_is_committed() -> None:
    assert tables.digest() == DIGEST
    assert DIGEST in (Path(lmcodec.__file__).parent / "docs" / "FORMAT.md").read_text("utf-8")
