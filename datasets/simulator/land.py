"""Where things stand in a simulated scene: a slightly turned street grid with blocks of houses, halls, fields, trees
and water.  Lengths are in the source's pixels, of about 2.5 m."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from datasets.simulator.canvas import (BACKGROUND, HEALTHY, NON_RESIDENTIAL, RESIDENTIAL, ROAD, STRESSED, SUN_DIRECTION,
                                       TREES, WATER, Canvas, Region)
from datasets.simulator.gap import DomainGap

_BLOCK_KINDS = ("commercial", "residential", "fields", "grove", "lake", "park", "residential", "commercial")
_LABELLED_SHARE = {HEALTHY: 0.85, STRESSED: 0.85, TREES: 0.90, WATER: 0.90, RESIDENTIAL: 0.95, NON_RESIDENTIAL: 0.90,
                   ROAD: 0.80}


@dataclass(frozen=True)
class LandCover:
    """Maps of one scene, all [H, W].

    material  index into MATERIALS
    objects   0..n-1, one id per field, crown, roof, stretch of road, ...
    classes   0 = background, 1..7 = CLASS_NAMES, complete and without gaps at borders
    sunlight  share of the direct sunlight that arrives: 1 on open ground, 0 in a cast shadow, above 1 facing the sun
    shadow    True in the shadow that a building casts
    """

    material: np.ndarray
    objects: np.ndarray
    classes: np.ndarray
    sunlight: np.ndarray
    shadow: np.ndarray


def _residential(canvas: Canvas, u0: float, u1: float, v0: float, v1: float) -> None:
    """Rows of small gabled roofs in gardens with a tree here and there."""
    rng = canvas.rng
    canvas.paint(canvas.box(u0, u1, v0, v1), canvas.choose(("healthy grass", "stressed grass")))
    columns, rows = max(1, int((u1 - u0) / 10.5)), max(1, int((v1 - v0) / 11.5))
    roofs = canvas.deal(("shingle", "tile", "shingle"), columns * rows)
    pitch_u, pitch_v = (u1 - u0) / columns, (v1 - v0) / rows
    for index, roof in enumerate(roofs):
        u = u0 + (index % columns + 0.5) * pitch_u + rng.uniform(-0.8, 0.8)
        v = v0 + (index // columns + 0.5) * pitch_v + rng.uniform(-0.8, 0.8)
        half_u, half_v = rng.uniform(2.6, 3.5), rng.uniform(2.8, 4.0)
        house = canvas.box(u - half_u, u + half_u, v - half_v, v + half_v)
        facing = canvas.v[house.window] < v if half_u > half_v else canvas.u[house.window] < u
        canvas.paint(house, roof, RESIDENTIAL, 2, np.where(facing, 1.10, 0.72))
        if rng.random() < 0.5:
            canvas.crown(u + 0.5 * pitch_u, v + rng.uniform(-0.4, 0.4) * pitch_v, rng.uniform(1.4, 2.3))


def _commercial(canvas: Canvas, u0: float, u1: float, v0: float, v1: float) -> None:
    """One or two big flat roofs with machinery on them, in a parking lot."""
    rng = canvas.rng
    canvas.paint(canvas.box(u0, u1, v0, v1), canvas.choose(("asphalt", "concrete")))
    parts = 2 if u1 - u0 > 24 else 1
    width = (u1 - u0) / parts
    for part, roof in enumerate(canvas.deal(("membrane", "gravel", "sheet metal"), parts)):
        left, gap = u0 + part * width, rng.uniform(1.5, 3.5, 4)
        box = (left + gap[0], left + width - gap[1], v0 + gap[2], v1 - gap[3])
        canvas.paint(canvas.box(*box), roof, NON_RESIDENTIAL, 3)
        for _ in range(rng.integers(1, 5)):
            u, v = rng.uniform(box[0] + 1, box[1] - 2), rng.uniform(box[2] + 1, box[3] - 2)
            canvas.paint(canvas.box(u, u + 1.5, v, v + 1.5), "sheet metal", height=3)


def _fields(canvas: Canvas, u0: float, u1: float, v0: float, v1: float) -> None:
    """Two to four strips, healthy and stressed grass in equal shares."""
    strips = int(np.clip((u1 - u0) / 9, 2, 4))
    kinds = canvas.deal(("healthy grass", "stressed grass"), strips)
    edges = np.linspace(u0, u1, strips + 1) + np.r_[0, canvas.rng.uniform(-1.5, 1.5, strips - 1), 0]
    for kind, left, right in zip(kinds, edges[:-1], edges[1:]):
        canvas.paint(canvas.box(left, right, v0, v1), kind, HEALTHY if kind == "healthy grass" else STRESSED)


def _grove(canvas: Canvas, u0: float, u1: float, v0: float, v1: float) -> None:
    """Crowns that touch and overlap, above shaded ground."""
    rng = canvas.rng
    canvas.paint(canvas.box(u0, u1, v0, v1), canvas.choose(("soil", "stressed grass")), sunlight=0.5)
    for _ in range(int((u1 - u0 - 4) * (v1 - v0 - 4) / 9)):
        canvas.crown(rng.uniform(u0 + 2, u1 - 2), rng.uniform(v0 + 2, v1 - 2), rng.uniform(1.8, 3.6))


def _lake(canvas: Canvas, u0: float, u1: float, v0: float, v1: float) -> None:
    """A lake with a sandy shore in a dry meadow."""
    canvas.paint(canvas.box(u0, u1, v0, v1), "stressed grass", STRESSED)
    u, v, half_u, half_v = (u0 + u1) / 2, (v0 + v1) / 2, 0.36 * (u1 - u0), 0.36 * (v1 - v0)
    shore = max(1, round(1 / canvas.step))
    lake = canvas.blob(u, v, half_u, half_v, 2 * shore * canvas.step)
    canvas.paint(Region(lake.window, ndimage.binary_dilation(lake.inside, iterations=shore)), "soil")
    canvas.paint(lake, "water", WATER)


def _park(canvas: Canvas, u0: float, u1: float, v0: float, v1: float) -> None:
    """A lawn with worn patches, a pond and single trees."""
    rng = canvas.rng
    canvas.paint(canvas.box(u0, u1, v0, v1), "healthy grass", HEALTHY)
    at_u, at_v = u0 + np.array([0.27, 0.72]) * (u1 - u0), v0 + np.array([0.3, 0.7]) * (v1 - v0)
    canvas.paint(canvas.blob(at_u[0], at_v[0], 0.17 * (u1 - u0), 0.17 * (v1 - v0)), "stressed grass", STRESSED)
    canvas.paint(canvas.blob(at_u[1], at_v[1], 0.20 * (u1 - u0), 0.18 * (v1 - v0)), "water", WATER)
    for _ in range(12):
        canvas.crown(rng.uniform(u0 + 2, u1 - 2), rng.uniform(v0 + 2, v1 - 2), rng.uniform(1.5, 3.0))


_PAINTERS = {"residential": _residential, "commercial": _commercial, "fields": _fields, "grove": _grove,
             "lake": _lake, "park": _park}


def _street_lines(rng: np.random.Generator, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Positions [n] and half widths [n] of parallel streets across low..high; every third is a wide avenue."""
    count = int((high - low) / 30) + 2
    positions = low - rng.uniform(2, 20) + np.cumsum(rng.uniform(29, 38, count))
    half_widths = np.where(np.arange(count) % 3 == rng.integers(3), 2.9, 1.9)
    crossing = positions < high + 20
    return positions[crossing], half_widths[crossing]


def _paint_blocks(canvas: Canvas, us: np.ndarray, vs: np.ndarray) -> None:
    """Fill the blocks between the streets; the largest ones get one of each kind, so no class is missing."""
    us, vs = np.r_[us[0] - 40, us, us[-1] + 40], np.r_[vs[0] - 40, vs, vs[-1] + 40]
    boxes = [(u0 + 2, u1 - 2, v0 + 2, v1 - 2) for u0, u1 in zip(us[:-1], us[1:]) for v0, v1 in zip(vs[:-1], vs[1:])]
    visible = np.array([np.count_nonzero(canvas.box(*box).inside) for box in boxes])
    order = [index for index in np.argsort(-visible, kind="stable") if visible[index]]
    for index, kind in zip(order, canvas.deal(_BLOCK_KINDS, len(order), all_first=True)):
        _PAINTERS[kind](canvas, *boxes[index])


def _paint_streets(canvas: Canvas, us: np.ndarray, vs: np.ndarray, wide_u: np.ndarray, wide_v: np.ndarray) -> None:
    """Stretches of road from crossing to crossing (avenues in concrete, streets in asphalt), then cars."""
    far = 1e4
    for positions, halves, crossings, along_v in ((us, wide_u, vs, True), (vs, wide_v, us, False)):
        stops = np.r_[-far, crossings, far]
        for position, half in zip(positions, halves):
            material = "concrete" if half > 2.5 else "asphalt"
            for start, end in zip(stops[:-1], stops[1:]):
                span, across = (start, end), (position - half, position + half)
                canvas.paint(canvas.box(*across, *span) if along_v else canvas.box(*span, *across), material, ROAD)
    on_road = np.argwhere(canvas.classes == ROAD)
    side = max(1, round(1 / canvas.step))
    for row, column in canvas.rng.choice(on_road, len(on_road) // (80 * side ** 2), replace=False):
        window = np.s_[row:row + side, column:column + side]
        canvas.paint(Region(window, np.ones(canvas.classes[window].shape, bool)), "sheet metal")


def _cast_shadows(canvas: Canvas) -> np.ndarray:
    """[H, W] True where a building stands between the ground and the sun."""
    height = canvas.height / canvas.step
    shadow = np.zeros(height.shape, bool)
    for distance in range(1, int(height.max()) + 1):
        caster = ndimage.shift(height, -distance * SUN_DIRECTION, order=0, mode="constant")
        shadow |= caster - height >= distance
    return shadow


def draw_land_cover(shape: tuple[int, int], rng: np.random.Generator, gap: DomainGap = DomainGap(),
                    step: float = 1.0) -> LandCover:
    """Draw the maps of one scene of shape (H, W), with the mix of surfaces of a gap, seen every `step`."""
    canvas = Canvas(shape, rng, gap, step)
    us, wide_u = _street_lines(rng, canvas.u.min(), canvas.u.max())
    vs, wide_v = _street_lines(rng, canvas.v.min(), canvas.v.max())
    _paint_blocks(canvas, us, vs)
    _paint_streets(canvas, us, vs, wide_u, wide_v)
    shadow = _cast_shadows(canvas)
    _, objects = np.unique(canvas.objects, return_inverse=True)
    return LandCover(canvas.material, objects.reshape(shape), canvas.classes,
                     np.where(shadow, 0.0, canvas.sunlight), shadow)


def annotate(land: LandCover, rng: np.random.Generator, samples: int = 1) -> np.ndarray:
    """[H, W] int64 labels as an annotator draws them: some objects of each class, without borders and cast shadows.

    The maps have samples × samples points in each pixel; mixed pixels and those that touch another class stay out.
    """
    inside = ndimage.minimum_filter(land.classes, 3) == ndimage.maximum_filter(land.classes, 3)
    height, width = land.classes.shape
    whole = (inside & ~land.shadow).reshape(height // samples, samples, width // samples, samples).all(axis=(1, 3))
    classes, objects = (layer[::samples, ::samples] for layer in (land.classes, land.objects))
    candidates = np.where(whole, classes, BACKGROUND)
    labels = np.zeros_like(candidates)
    for label, share in _LABELLED_SHARE.items():
        mine = candidates == label
        ids, counts = np.unique(objects[mine], return_counts=True)
        order = rng.permutation(len(ids))
        enough = np.searchsorted(np.cumsum(counts[order]), share * counts.sum()) + 1
        labels[mine & np.isin(objects, ids[order[:enough]])] = label
    return labels
