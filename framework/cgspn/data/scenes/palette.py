"""Colours: families that many classes share, so that a hue does not give its class away, and the light."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np

Rng = np.random.Generator

# Hue in degrees, saturation and value, each as a range.
FAMILIES: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "red": ((-12, 12), (0.45, 0.8), (0.4, 0.85)),
    "terracotta": ((8, 28), (0.35, 0.65), (0.45, 0.8)),
    "brown": ((18, 38), (0.25, 0.6), (0.25, 0.6)),
    "straw": ((36, 56), (0.25, 0.6), (0.55, 0.9)),
    "olive": ((55, 85), (0.3, 0.6), (0.3, 0.65)),
    "green": ((85, 140), (0.3, 0.65), (0.3, 0.7)),
    "teal": ((150, 195), (0.25, 0.6), (0.35, 0.75)),
    "blue": ((198, 232), (0.25, 0.65), (0.45, 0.9)),
    "violet": ((240, 300), (0.12, 0.4), (0.4, 0.8)),
    "rose": ((310, 350), (0.15, 0.5), (0.5, 0.9)),
    "grey": ((0, 360), (0.0, 0.08), (0.3, 0.8)),
    "cream": ((25, 60), (0.05, 0.25), (0.7, 0.95)),
    "dark": ((0, 360), (0.05, 0.3), (0.12, 0.3)),
    "white": ((0, 360), (0.0, 0.06), (0.85, 1.0)),
}
PAINTED = tuple(FAMILIES)
# Named more than once where more frequent: typical hues make scenes look right, none gives its class away.
PALETTES: dict[str, tuple[str, ...]] = {
    "sky": ("blue",) * 5 + ("grey", "grey", "white", "cream", "rose", "teal", "violet", "straw"),
    "foliage": ("green",) * 4 + ("olive", "olive", "straw", "brown", "terracotta", "teal"),
    "grass": ("green",) * 4 + ("olive", "olive", "straw", "brown"),
    "sand": ("straw",) * 4 + ("cream", "cream", "brown", "grey", "rose"),
    "water": ("blue", "blue", "teal", "teal", "teal", "grey", "green", "olive", "violet"),
    "stone": ("grey", "grey", "grey", "brown", "brown", "violet", "dark", "cream", "terracotta"),
    "asphalt": ("grey", "grey", "dark", "dark", "dark", "brown", "violet", "blue"),
    "wood": ("brown", "brown", "brown", "terracotta", "straw", "cream", "grey"),
    "masonry": (
        "terracotta",
        "terracotta",
        "cream",
        "cream",
        "grey",
        "straw",
        "rose",
        "white",
        "blue",
        "olive",
    ),
    "skin": ("brown", "terracotta", "cream"),
    "paint": PAINTED,
}


def color(rng: Rng, palette: str) -> np.ndarray:
    """Draws a colour from one of the families of a palette, float32 RGB in [0, 1], shape (3,)."""
    families = PALETTES[palette]
    hue, saturation, value = FAMILIES[families[int(rng.integers(len(families)))]]
    h, s, v = rng.random(3)
    return np.array(
        colorsys.hsv_to_rgb(
            (hue[0] + h * (hue[1] - hue[0])) / 360 % 1,
            saturation[0] + s * (saturation[1] - saturation[0]),
            value[0] + v * (value[1] - value[0]),
        ),
        dtype=np.float32,
    )


@dataclass(frozen=True)
class Light:
    """Where the light comes from and what it does to colours.

    Attributes:
        side: -1 from the left to 1 from the right.
        height: 0 at the horizon to 1 overhead; low light casts long shadows.
        tint: Multiplies every colour, RGB.
        haze: Colour that distance fades to, RGB.
        thickness: Share of the haze at the horizon.
        contrast: How deep shadows and shading are.
    """

    side: float
    height: float
    tint: np.ndarray
    haze: np.ndarray
    thickness: float
    contrast: float


def light(rng: Rng, haze: np.ndarray) -> Light:
    """Draws a light: daylight, warm, cold or dim."""
    warm = rng.uniform(-1, 1)
    gain = rng.uniform(0.75, 1.15)
    tint = np.array([1 + 0.1 * warm, 1 + 0.04 * rng.uniform(-1, 1), 1 - 0.1 * warm], np.float32) * gain
    return Light(
        side=float(rng.uniform(-1, 1)),
        height=float(rng.uniform(0.25, 1)),
        tint=tint.astype(np.float32),
        haze=haze,
        thickness=float(rng.uniform(0, 0.35)),
        contrast=float(rng.uniform(0.15, 0.5)),
    )
