"""Rotary embeddings: the angle that one position turns each pair by, in exact decimal arithmetic.

transformers computes these in binary32, with a machine's own pow, cos and sin. Here every value is computed
to 50 digits and rounded once, so that it is the same everywhere. Scalings whose angles don't depend on the
length of a text are known: none, linear, llama3 (Llama 3.1), yarn (arXiv:2309.00071).
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Context, Decimal, localcontext
from typing import Any

import numpy as np

from lmcodec.errors import Corrupt, Unsupported

CONTEXT = Context(prec=60)
_TERMS = 80  # of a series for angles up to 2


def single(value: Decimal) -> float:
    """To the nearest binary64, then to the nearest binary32."""
    return float(np.float32(float(value)))


def number(what: str, value: Any, low: float, high: float) -> Decimal:
    """A number of a config.json, exactly.

    Raises:
        Corrupt: it is none from `low` to `high`.
    """
    if type(value) not in (int, float) or not low <= value <= high:
        raise Corrupt(f"{what} is {str(value)[:40]}, expected a number from {low:g} to {high:g}")
    return Decimal(value)


def rotary(
    settings: dict[str, Any], head_dim: int, factors: Sequence[float] = (), window: int = 0
) -> tuple[np.ndarray, Decimal]:
    """Cosines and sines of one position's angles, and what scaling multiplies scores by.

    Args:
        settings: `rope_theta`, and of a scaling its `rope_type` and its members, as config.json has them.
        head_dim: E, or how many elements of a head are rotated.
        factors: that frequencies are divided by, as a GGUF file has them; none for no such factors.
        window: W, for scalings that depend on the length of a text: "longrope" has other factors beyond the
            length that the model was trained with first; 0 if they are not known.

    Returns:
        (2, E / 2) float64, and the factor.

    Raises:
        Unsupported: the scaling is not known, or depends on the length of a text.
        Corrupt: a member is missing or out of range.
    """
    with localcontext(CONTEXT):
        theta = number("rope_theta", settings.get("rope_theta", 10000.0), 1, 1e12)
        log_theta = theta.ln()
        frequency = [(-log_theta * 2 * i / head_dim).exp() for i in range(head_dim // 2)]
        kind = settings.get("rope_type", settings.get("type", "default"))
        score = Decimal(1)
        if kind == "default":
            pass
        elif kind == "linear":
            factor = number("rope scaling: factor", settings.get("factor"), 1, 1e6)
            frequency = [f / factor for f in frequency]
        elif kind == "llama3":
            frequency = _llama3(settings, frequency)
        elif kind == "yarn":
            frequency, score = _yarn(settings, frequency, log_theta, head_dim)
        elif kind in ("longrope", "su") and window:
            factors, score = _longrope(settings, factors, window)
        else:
            raise Unsupported(
                f"rope scaling {str(kind)[:40]!r}; known are default, linear, llama3 and yarn"
                + (" (its angles depend on the length of a text)" if kind in ("dynamic", "longrope") else "")
            )
        if len(factors):
            if len(factors) != head_dim // 2:
                raise Corrupt(f"{len(factors)} factors of rotary frequencies, expected {head_dim // 2}")
            frequency = [
                f / number("factor of a rotary frequency", float(by), 2.0**-20, 2.0**20)
                for f, by in zip(frequency, factors, strict=True)
            ]
        pairs = [_cosine_and_sine(f) for f in frequency]
        return np.array(pairs, np.float64).T.copy(), score


def _llama3(settings: dict[str, Any], frequency: list[Decimal]) -> list[Decimal]:
    factor, low, high = (
        number(f"rope scaling: {name}", settings.get(name), 2.0**-10, 1e6)
        for name in ("factor", "low_freq_factor", "high_freq_factor")
    )
    original = _original(settings)
    if not low < high:
        raise Corrupt(f"rope scaling: low_freq_factor is {low}, not below high_freq_factor, {high}")
    scaled = []
    for f in frequency:
        length = 2 * _pi() / f
        if length < original / high:
            scaled.append(f)
        elif length > original / low:
            scaled.append(f / factor)
        else:
            smooth = (original / length - low) / (high - low)
            scaled.append((1 - smooth) * f / factor + smooth * f)
    return scaled


def _yarn(
    settings: dict[str, Any], frequency: list[Decimal], log_theta: Decimal, head_dim: int
) -> tuple[list[Decimal], Decimal]:
    original = _original(settings)
    factor = number("rope scaling: factor", settings.get("factor"), 1, 1e6)

    def given(name: str, default: int) -> Decimal:
        value = settings.get(name)
        return number(f"rope scaling: {name}", default if value is None else value, 2.0**-10, 1e6)

    def scale(by: Decimal) -> Decimal:
        return by * factor.ln() / 10 + 1

    if settings.get("attention_factor") is not None:
        attention = given("attention_factor", 1)
    elif settings.get("mscale") and settings.get("mscale_all_dim"):
        attention = scale(given("mscale", 1)) / scale(given("mscale_all_dim", 1))
    else:
        attention = scale(Decimal(1))

    def dimension(turns: Decimal) -> Decimal:
        return head_dim * (original / (turns * 2 * _pi())).ln() / (2 * log_theta)

    if not log_theta:
        raise Corrupt("rope_theta is 1, which yarn cannot scale")
    low, high = dimension(given("beta_fast", 32)), dimension(given("beta_slow", 1))
    if settings.get("truncate", True):
        low, high = low.to_integral_value("ROUND_FLOOR"), high.to_integral_value("ROUND_CEILING")
    low, high = max(low, Decimal(0)), min(high, Decimal(head_dim - 1))
    if low == high:
        high += Decimal("0.001")
    scaled = []
    for i, f in enumerate(frequency):
        ramp = min(max((i - low) / (high - low), Decimal(0)), Decimal(1))
        scaled.append(f / factor * ramp + f * (1 - ramp))
    return scaled, attention * attention  # of the query and of the key


def _longrope(
    settings: dict[str, Any], factors: Sequence[float], window: int
) -> tuple[Sequence[float], Decimal]:
    """The factors of short texts: only differences of positions matter, and these are below the window."""
    original = _original(settings)
    if window > original:
        raise Unsupported(
            f"rope scaling 'longrope' has other angles beyond {original} tokens; ask for a smaller --window"
        )
    given = factors if len(factors) else settings.get("short_factor")
    if not isinstance(given, (list, tuple)) or not given:
        raise Corrupt("rope scaling: short_factor is no list of numbers")
    given = [float(number("rope scaling: short_factor", by, 2.0**-20, 2.0**20)) for by in given]
    attention = settings.get("attention_factor")
    if attention is not None:
        score = number("rope scaling: attention_factor", attention, 2.0**-10, 1e6)
    else:
        factor = settings.get("factor")
        if factor is None:
            factor = float(number("max_position_embeddings", settings.get("longest"), 1, 2.0**40) / original)
        by = number("rope scaling: factor", factor, 2.0**-10, 1e6)
        score = (1 + by.ln() / original.ln()).sqrt() if by > 1 and original > 1 else Decimal(1)
    return given, score * score


def _original(settings: dict[str, Any]) -> Decimal:
    name = "original_max_position_embeddings"
    return number(f"rope scaling: {name}", settings.get(name), 1, 2.0**40)


def _cosine_and_sine(angle: Decimal) -> tuple[float, float]:
    turn = 2 * _pi()
    angle = angle - (angle / turn).to_integral_value() * turn
    cosine, sine, term = Decimal(0), Decimal(0), Decimal(1)
    for n in range(_TERMS):
        if n % 2 == 0:
            cosine += term if n % 4 == 0 else -term
        else:
            sine += term if n % 4 == 1 else -term
        term = term * angle / (n + 1)
    return float(cosine), float(sine)


def _pi() -> Decimal:
    """By Machin's formula."""

    def arctan_of_inverse(n: int) -> Decimal:
        total, power, k = Decimal(0), Decimal(1) / n, 0
        while power > Decimal(10) ** -62:
            total += (power if k % 2 == 0 else -power) / (2 * k + 1)
            power /= n * n
            k += 1
        return total

    return 4 * (4 * arctan_of_inverse(5) - arctan_of_inverse(239))
