"""Draw one generated image together with its COCO annotations.

A scene is painted from the back to the front: textured background, clutter,
objects, thin clutter over them. Colours, textures and lighting are drawn from
one distribution for all categories, so that only the outline tells them apart.
"""
import cv2
import numpy as np
from pycocotools import mask as coco_mask

from .canvas import Canvas, waves
from .shapes import CLASSES, OUTLINES

SCALES = (0.05, 0.8)
"""Smallest and largest object diameter, as a share of the image side."""
_SCALE_SKEW = 0.5
"""Exponent below 1 that makes large objects more frequent than small ones."""
CROWD_RATE = 0.15
"""Probability that an image holds a bunch annotated as one crowd."""


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return a smooth coloured ground with grain and a lighting gradient."""
    cells = rng.integers(2, 9)
    coarse = rng.uniform(40, 215, 3) + rng.uniform(-25, 25, (cells, cells, 3))
    ground = cv2.resize(
        coarse.astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
    grain = rng.standard_normal((size // 2, size // 2), np.float32)
    grain = cv2.resize(grain, (size, size)) * rng.uniform(0, 10)
    ripples = waves(rng, size, size, size * rng.uniform(0.05, 0.4))
    light = 1 + rng.uniform(0, 0.4) * waves(rng, size, size, 3 * size)
    relief = grain + ripples * rng.uniform(0, 12)
    return (ground + relief[..., None]) * light[..., None]


def _paint_clutter(canvas: Canvas, rng: np.random.Generator) -> None:
    """Paint a line, a partial arc or a blob that is of no category."""
    centre = rng.uniform(0, canvas.size, 2)
    radius = canvas.size * rng.uniform(0.04, 0.3)
    thickness = int(rng.integers(1, max(2, canvas.size // 32)))
    kind = rng.integers(3)
    if kind == 0:
        end = rng.uniform(0, canvas.size, 2)
        canvas.paint([np.stack([centre, end])], rng, thickness=thickness)
        return
    if kind == 1:
        angles = rng.uniform(0, 2 * np.pi) + np.linspace(
            0, rng.uniform(0.5, 2.5), 16)
        radii = np.full(16, radius)
    else:
        angles = np.linspace(0, 2 * np.pi, 32, endpoint=False)
        radii = np.ones(32)
        for frequency in (2, 3, 5):
            radii += rng.uniform(0.1, 0.3) * np.cos(
                frequency * angles + rng.uniform(0, 2 * np.pi))
        radii *= radius / 2
        thickness = 0
    points = np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None]
    canvas.paint([centre + points], rng, thickness=thickness)


def _placed(rng: np.random.Generator, category: str, diameter: float,
            centre: np.ndarray) -> list[np.ndarray]:
    """Return a category's contours in pixels, stretched and rotated."""
    stretch = np.exp(rng.uniform(-0.15, 0.15))
    angle = rng.uniform(-0.4, 0.4)
    turn = np.array([[np.cos(angle), -np.sin(angle)],
                     [np.sin(angle), np.cos(angle)]])
    matrix = diameter / 2 * turn * (stretch, 1 / stretch)
    return [contour @ matrix.T + centre for contour in OUTLINES[category]]


def _paint_object(canvas: Canvas, rng: np.random.Generator) -> dict:
    """Paint one object; return the start of its annotation."""
    label = int(rng.integers(len(CLASSES)))
    low, high = SCALES
    diameter = canvas.size * low * (high / low)**(rng.uniform()**_SCALE_SKEW)
    margin = 0.35 * diameter
    places = rng.uniform(margin, canvas.size - margin, (6, 2))
    centre = min(places, key=lambda place: canvas.crowding(place, diameter))
    owner = canvas.add_object()
    canvas.paint(
        _placed(rng, CLASSES[label], diameter, centre), rng, owner)
    return dict(owner=owner, category_id=label + 1, iscrowd=0)


def _paint_crowd(canvas: Canvas, rng: np.random.Generator) -> dict:
    """Paint a bunch of small objects; return the start of its annotation."""
    label = int(rng.integers(len(CLASSES)))
    spread = canvas.size * rng.uniform(0.06, 0.12)
    centre = rng.uniform(2 * spread, canvas.size - 2 * spread, 2)
    owner = canvas.add_object()
    for _ in range(rng.integers(6, 15)):
        diameter = canvas.size * rng.uniform(0.06, 0.1)
        place = centre + rng.normal(0, spread, 2)
        canvas.paint(
            _placed(rng, CLASSES[label], diameter, place), rng, owner)
    return dict(owner=owner, category_id=label + 1, iscrowd=1)


def _finish(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """Blur the image, add sensor noise and round to 8 bits."""
    sigma = canvas.size / 128 * rng.uniform(0.1, 0.9)
    image = cv2.GaussianBlur(canvas.image, (0, 0), sigma)
    noise = rng.standard_normal(image.shape, np.float32)
    image = image + noise * np.float32(rng.uniform(0, 8))
    return image.clip(0, 255).astype(np.uint8)


def draw_scene(rng: np.random.Generator,
               size: int) -> tuple[np.ndarray, list[dict]]:
    """Draw one image and annotate what can be seen in it.

    Args:
        rng: Source of everything random; its state decides the image.
        size: Side of the square image in pixels.

    Returns:
        The BGR image, uint8, shape (size, size, 3), and its annotations with
        ``category_id`` (from 1), ``iscrowd``, ``segmentation`` (compressed
        RLE of the visible part), ``area`` in pixels and ``bbox`` as
        [x, y, width, height] in pixels.
    """
    canvas = Canvas(_background(rng, size))
    for _ in range(rng.integers(1, 4)):
        _paint_clutter(canvas, rng)
    found = []
    if rng.random() < CROWD_RATE:
        found.append(_paint_crowd(canvas, rng))
    for _ in range(rng.integers(2, 7)):
        found.append(_paint_object(canvas, rng))
        if rng.random() < 0.2:
            _paint_clutter(canvas, rng)

    annotations = []
    for annotation in found:
        visible = canvas.visible_part(annotation.pop('owner'))
        if visible is None:
            continue
        rle = coco_mask.encode(np.asfortranarray(visible, np.uint8))
        annotation['bbox'] = coco_mask.toBbox(rle).tolist()
        annotation['area'] = int(coco_mask.area(rle))
        annotation['segmentation'] = dict(
            size=rle['size'], counts=rle['counts'].decode('ascii'))
        annotations.append(annotation)
    return _finish(canvas, rng), annotations
