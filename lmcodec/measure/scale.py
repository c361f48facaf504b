"""Colours for bits: steps of equal perceived difference, from the page's own lightness to its opposite.

Steps are equal in OKLab (B. Ottosson, "A perceptual color space for image processing", 2020), and lightness
changes with every step in the same direction: the order also shows in grey and to the colour-blind. Text on a
step is black or white, whichever contrasts more (WCAG 2.2, at least 4.5 to 1 on every step).
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

N_LEVEL = 17

# (lightness, chroma, hue in degrees) along each scale, from few bits to many. Ends at few bits are close to
# the page, so that what costs most stands out.
_LIGHT = [
    (0.99, 0.005, 95),
    (0.94, 0.055, 92),
    (0.85, 0.095, 72),
    (0.73, 0.125, 45),
    (0.58, 0.150, 15),
    (0.44, 0.140, 350),
    (0.30, 0.100, 325),
]
_DARK = [
    (0.21, 0.005, 300),
    (0.29, 0.070, 318),
    (0.39, 0.110, 340),
    (0.52, 0.145, 5),
    (0.66, 0.155, 35),
    (0.81, 0.130, 68),
    (0.95, 0.080, 98),
]

_TO_LMS = np.array(
    [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
)
_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


class Step(NamedTuple):
    """A step of a scale: its colour and that of text on it, as #rrggbb."""

    background: str
    foreground: str


def oklab_to_linear_rgb(lab: np.ndarray) -> np.ndarray:
    """(n, 3) OKLab to (n, 3) linear sRGB, in 0 to 1 where the screen can show it."""
    rgb: np.ndarray = (lab @ _TO_LMS.T) ** 3 @ _TO_RGB.T
    return rgb


@cache
def oklab_steps(dark: bool) -> np.ndarray:
    """(N_LEVEL, 3) OKLab colours of a scale, at equal distances along it."""
    lightness, chroma, hue = np.array(_DARK if dark else _LIGHT, float).T
    hue = np.unwrap(np.radians(hue))
    knots = np.linspace(0, 1, len(lightness))
    fine = np.linspace(0, 1, 2001)
    # In Cartesian coordinates, and smooth: a corner of the path would be a band in the scale.
    axes = (lightness, chroma * np.cos(hue), chroma * np.sin(hue))
    path = np.stack([np.polynomial.Polynomial.fit(knots, axis, 4)(fine) for axis in axes], axis=1)
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])
    at = np.interp(np.linspace(0, length[-1], N_LEVEL), length, fine)
    return np.stack([np.interp(at, fine, path[:, i]) for i in range(3)], axis=1)


@cache
def steps(dark: bool) -> list[Step]:
    """The scale, N_LEVEL steps from few bits to many."""
    linear = np.clip(oklab_to_linear_rgb(oklab_steps(dark)), 0, 1)
    return [Step(_hex(rgb), "#000000" if luminance(rgb) > 0.179 else "#ffffff") for rgb in linear]


def luminance(rgb: np.ndarray) -> float:
    """Relative luminance of (3,) linear sRGB."""
    return float(rgb @ [0.2126, 0.7152, 0.0722])


def _hex(linear: np.ndarray) -> str:
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return "#" + "".join(f"{round(255 * float(v)):02x}" for v in srgb)
