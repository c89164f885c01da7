"""Outlines of the generated categories.

An outline is a list of closed contours, each of shape (P, 2); a point inside
an odd number of them belongs to the shape. Outlines are centred at the origin
and reach exactly to the unit circle.
"""
import numpy as np


def _radial(radii: np.ndarray, start: float = 0.0) -> np.ndarray:
    """Place one point per radius at equal angles, from ``start`` radians."""
    angles = start + np.arange(len(radii)) * 2 * np.pi / len(radii)
    return np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None]


def _regular(num_corners: int, radius: float = 1.0) -> np.ndarray:
    """Return the corners of a regular polygon."""
    return _radial(np.full(num_corners, radius))


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    return np.stack([
        16 * np.sin(t)**3,
        13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    ], 1)


def _crescent() -> np.ndarray:
    """Cut a disk of radius 0.8 about (0.45, 0) out of the unit disk."""
    horn = np.arccos((1 + 0.45**2 - 0.8**2) / (2 * 0.45))
    outer = np.linspace(horn, 2 * np.pi - horn, 40)
    bite = np.arctan2(np.sin(horn), np.cos(horn) - 0.45)
    inner = np.linspace(2 * np.pi - bite, bite, 30)[1:-1]
    return np.concatenate([
        np.stack([np.cos(outer), np.sin(outer)], 1),
        np.stack([0.45 + 0.8 * np.cos(inner), 0.8 * np.sin(inner)], 1)
    ])


def _drop() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    return np.stack([np.cos(t), np.sin(t) * np.sin(t / 2)**2], 1)


def _normalized(*contours: np.ndarray) -> list[np.ndarray]:
    """Centre an outline by its first contour and scale it to radius 1."""
    low, high = contours[0].min(0), contours[0].max(0)
    centre = (low + high) / 2
    radius = np.linalg.norm(contours[0] - centre, axis=1).max()
    return [(contour - centre) / radius for contour in contours]


OUTLINES = {
    'disk': _normalized(_regular(48)),
    'ring': _normalized(_regular(48), _regular(48, 0.5)),
    'triangle': _normalized(_regular(3)),
    'square': _normalized(_regular(4)),
    'star': _normalized(_radial(np.tile([1, 0.42], 5))),
    'cross': _normalized(
        np.array([[3, 1], [1, 1], [1, 3], [-1, 3], [-1, 1], [-3, 1], [-3, -1],
                  [-1, -1], [-1, -3], [1, -3], [1, -1], [3, -1]], float)),
    'arrow': _normalized(
        np.array([[5, 0], [0, 4], [0, 1.5], [-5, 1.5], [-5, -1.5], [0, -1.5],
                  [0, -4]], float)),
    'heart': _normalized(_heart()),
    'crescent': _normalized(_crescent()),
    'drop': _normalized(_drop()),
}

CLASSES = tuple(OUTLINES)
