"""Paint textured areas over each other and keep track of what stays seen."""
import math

import cv2
import numpy as np

MIN_VISIBLE = 0.3
"""An object of which a smaller share can be seen is not annotated."""

_SHIFT = 4
_NOBODY = -1


def waves(rng: np.random.Generator, height: int, width: int,
          wavelength: float) -> np.ndarray:
    """Return a plane wave of random direction and phase.

    Args:
        rng: Source of the direction and the phase.
        height: Rows.
        width: Columns.
        wavelength: Distance of two crests in pixels.

    Returns:
        Values in [-1, 1], float32, shape (height, width).
    """
    angle, phase = rng.uniform(0, 2 * np.pi, 2).tolist()
    pace = 2 * math.pi / wavelength
    rows = np.arange(height, dtype=np.float32) * (pace * math.sin(angle))
    columns = np.arange(width, dtype=np.float32) * (pace * math.cos(angle))
    return np.sin(rows[:, None] + columns + phase)


def _texture(rng: np.random.Generator, behind: np.ndarray,
             size: int) -> np.ndarray:
    """Return a shaded, patterned fill that stands out from what is behind."""
    height, width = behind.shape[:2]
    colours = rng.uniform(20, 235, (5, 3)).astype(np.float32)
    contrast = np.abs(colours - behind.mean((0, 1))).sum(1)
    colour = colours[contrast.argmax()]
    kind = rng.integers(4)
    wavelength = size * rng.uniform(0.03, 0.12)
    if kind == 0:
        pattern = waves(rng, height, width, wavelength)
    elif kind == 1:
        pattern = np.sign(
            waves(rng, height, width, wavelength) *
            waves(rng, height, width, wavelength))
    elif kind == 2:
        pattern = rng.standard_normal((height, width), np.float32)
    else:
        pattern = np.zeros((height, width), np.float32)
    light = 1 + rng.uniform(0, 0.3) * waves(rng, height, width, 2 * size)
    other = rng.uniform(-25, 25, 3).astype(np.float32)
    return (colour + pattern[..., None] * other) * light[..., None]


class Canvas:
    """An image being painted, and what can still be seen of each object.

    Args:
        image: Background colours in [0, 255], float32, shape (S, S, 3).
    """

    def __init__(self, image: np.ndarray) -> None:
        self.image = image
        self.size = len(image)
        self._seen = np.full(image.shape[:2], _NOBODY)
        self._painted: list[np.ndarray] = []

    def add_object(self) -> int:
        """Open a new object and return the number to paint it with."""
        self._painted.append(np.zeros(self.image.shape[:2], bool))
        return len(self._painted) - 1

    def crowding(self, centre: np.ndarray, diameter: float) -> int:
        """Count the pixels around a place at which an object is seen."""
        x0, y0 = (centre - diameter / 2).astype(int).clip(0)
        x1, y1 = (centre + diameter / 2).astype(int)
        return np.count_nonzero(self._seen[y0:y1, x0:x1] != _NOBODY)

    def paint(self,
              contours: list[np.ndarray],
              rng: np.random.Generator,
              owner: int = _NOBODY,
              thickness: int = 0) -> None:
        """Paint a textured area or line over what is there.

        Args:
            contours: Points in pixels, each of shape (P, 2).
            rng: Source of colours and texture.
            owner: Number of the object painted, -1 for clutter.
            thickness: Line width in pixels; 0 fills the closed contours.
        """
        points = np.concatenate(contours)
        x0, y0 = np.floor(points.min(0) - thickness - 1).astype(int).clip(0)
        x1, y1 = np.ceil(points.max(0) + thickness + 2).astype(int).clip(
            0, self.size)
        if x0 >= x1 or y0 >= y1:
            return
        area = slice(y0, y1), slice(x0, x1)
        alpha = np.zeros((y1 - y0, x1 - x0), np.uint8)
        fixed = [
            np.round((contour - (x0, y0)) * 2**_SHIFT).astype(np.int32)
            for contour in contours
        ]
        if thickness:
            cv2.polylines(alpha, fixed, False, 255, thickness, cv2.LINE_AA,
                          _SHIFT)
        else:
            cv2.fillPoly(alpha, fixed, 255, cv2.LINE_AA, _SHIFT)

        behind = self.image[area]
        fill = _texture(rng, behind, self.size)
        behind += (fill - behind) * (alpha[..., None] / np.float32(255))
        solid = alpha > 127
        self._seen[area][solid] = owner
        if owner != _NOBODY:
            self._painted[owner][area] |= solid

    def visible_part(self, owner: int) -> np.ndarray | None:
        """Return the mask of what is seen of an object, None if too little."""
        visible = self._seen == owner
        if visible.sum() <= MIN_VISIBLE * self._painted[owner].sum():
            return None
        return visible
