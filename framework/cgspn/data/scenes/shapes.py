"""Outlines, as (N, 2) arrays of scene coordinates."""

from __future__ import annotations

import numpy as np

Rng = np.random.Generator


def polygon(*points: tuple[float, float]) -> np.ndarray:
    """Polygon through the given corners."""
    return np.array(points, dtype=np.float64)


def rectangle(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """Upright rectangle."""
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)], dtype=np.float64)


def ellipse(x: float, y: float, rx: float, ry: float, corners: int = 20) -> np.ndarray:
    """Upright ellipse with half axes ``rx`` and ``ry``."""
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)


def blob(
    rng: Rng, x: float, y: float, rx: float, ry: float, roughness: float = 0.15, corners: int = 28
) -> np.ndarray:
    """Ellipse whose radius varies smoothly by about ``roughness``."""
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    radius = np.ones(corners)
    for k in (2, 3, 5, 8):
        radius += roughness * rng.normal() / k**0.5 * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
    radius = np.clip(radius, 0.4, 1.7)
    return np.stack([x + rx * radius * np.cos(angle), y + ry * radius * np.sin(angle)], axis=1)


def ridge(rng: Rng, left: float, right: float, base: float, height: float, detail: int = 6) -> np.ndarray:
    """A jagged skyline by midpoint displacement, closed along ``y = base``."""
    line = rng.uniform(0.25, 1, 3)
    step = 0.35
    for _ in range(detail):
        middle = (line[1:] + line[:-1]) / 2 + rng.uniform(-step, step, len(line) - 1)
        merged = np.empty(2 * len(line) - 1)
        merged[::2], merged[1::2] = line, middle
        line, step = merged, step * 0.52
    x = np.linspace(left, right, len(line))
    y = base - height * np.clip(line, 0.02, 1.4)
    return np.concatenate([np.stack([x, y], 1), [(right, base), (left, base)]])


def hill(rng: Rng, left: float, right: float, base: float, height: float) -> np.ndarray:
    """A smooth skyline, closed along ``y = base``."""
    x = np.linspace(left, right, 33)
    y = np.full(33, 0.6)
    for k in (1.0, 2.3, 4.1):
        y += 0.3 / k**0.5 * np.sin(k * 2 * np.pi * (x - left) / (right - left) * 0.7 + rng.uniform(0, 6.3))
    y = base - height * np.clip(y, 0.05, 1.3)
    return np.concatenate([np.stack([x, y], 1), [(right, base), (left, base)]])


def stroke(points: np.ndarray, start: float, end: float) -> np.ndarray:
    """Outline of a line through ``points`` whose width goes from ``start`` to ``end``."""
    direction = np.gradient(points, axis=0)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True) + 1e-9
    normal = np.stack([-direction[:, 1], direction[:, 0]], 1)
    half = np.linspace(start, end, len(points))[:, None] / 2
    return np.concatenate([points + half * normal, (points - half * normal)[::-1]])
