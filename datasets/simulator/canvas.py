"""The maps of a simulated scene while they are painted, object by object."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datasets.simulator.gap import DomainGap
from datasets.simulator.materials import MATERIALS

CLASS_NAMES = ("grass healthy", "grass stressed", "trees", "water", "residential buildings",
               "non-residential buildings", "road")
BACKGROUND, HEALTHY, STRESSED, TREES, WATER, RESIDENTIAL, NON_RESIDENTIAL, ROAD = range(8)

SUN_DIRECTION = np.array([-0.6, -0.8])     # towards the sun, (row, column): upper left
_MATERIAL_INDEX = {name: index for index, name in enumerate(MATERIALS)}
_GRASS = {"healthy grass": HEALTHY, "stressed grass": STRESSED}
_INSTEAD = {"shingle": "tile", "tile": "shingle", "membrane": "gravel", "gravel": "membrane", "sheet metal": "membrane",
            "asphalt": "concrete", "concrete": "asphalt", "healthy grass": "stressed grass",
            "stressed grass": "healthy grass", "water": "healthy grass"}      # what stands where a material is missing
_GONE_WITH = {"tree": "grove", "water": "lake"}         # blocks that are left out with a material


@dataclass(frozen=True)
class Region:
    """Pixels to paint: a window of the scene, and those of its pixels, [h, w] bool."""

    window: tuple[slice, slice]
    inside: np.ndarray


class Canvas:
    """The maps while they are painted.  u and v [H, W] are coordinates along the two street directions; a step is the
    distance of two neighbouring pixels."""

    def __init__(self, shape: tuple[int, int], rng: np.random.Generator, gap: DomainGap, step: float):
        self.rng, self.gap, self.step = rng, gap, step
        self.absent = {_GONE_WITH.get(name, name) for name in gap.missing} - MATERIALS.keys()
        row, column = step * np.mgrid[:shape[0], :shape[1]].astype(float)
        self.angle = np.deg2rad(rng.uniform(6, 14) * rng.choice([-1, 1]))
        self.u = np.cos(self.angle) * column + np.sin(self.angle) * row
        self.v = np.cos(self.angle) * row - np.sin(self.angle) * column
        self.material = np.full(shape, _MATERIAL_INDEX[self._standing("healthy grass")])
        self.objects = np.zeros(shape, np.int64)
        self.classes = np.zeros(shape, np.int64)
        self.sunlight = np.ones(shape)
        self.height = np.zeros(shape)
        self.n_objects = 1                     # object 0 is the ground that nothing was painted on

    def paint(self, region: Region, material: str, label: int = BACKGROUND, height: float = 0.0,
              sunlight: np.ndarray | float = 1.0) -> None:
        """Put one new object on top of what is there.  height: a building of that height casts a shadow; sunlight: one
        value, or the region's window [h, w]."""
        material = self._standing(material)
        if label in (HEALTHY, STRESSED, WATER):
            label = _GRASS.get(material, label)
        for layer, value in ((self.material, _MATERIAL_INDEX[material]), (self.objects, self.n_objects),
                             (self.classes, label), (self.height, height)):
            layer[region.window][region.inside] = value
        self.sunlight[region.window][region.inside] = (
            sunlight[region.inside] if isinstance(sunlight, np.ndarray) else sunlight)
        self.n_objects += 1

    def _standing(self, material: str) -> str:
        """The material, or what stands in its place where it is missing."""
        while material in self.gap.missing:
            material = _INSTEAD[material]
        return material

    def deal(self, kinds: tuple[str, ...], n: int, all_first: bool = False) -> list[str]:
        """n kinds in random order, each as often as its share says.  all_first: no kind is left out by chance where n
        is enough, and the list begins with one of each."""
        weights = self._weights(kinds)
        if len({*weights}) == 1:
            rounds = [kind for _ in range(-(-n // len(kinds))) for kind in self.rng.permutation(kinds)]
            return [str(kind) for kind in rounds[:n]]
        places = (self.rng.random() + np.arange(n)) / n
        upto = np.cumsum(weights)
        dealt = [kinds[index] for index in np.searchsorted(upto / upto[-1], places)]
        different = dict.fromkeys(kind for kind, weight in zip(kinds, weights) if weight)
        first = [str(kind) for kind in self.rng.permutation(list(different))] if all_first else []
        for kind in first:
            if kind in dealt:
                dealt.remove(kind)
        return (first + [str(kind) for kind in self.rng.permutation(dealt)])[:n]

    def choose(self, kinds: tuple[str, ...]) -> str:
        """One of some kinds, by their shares."""
        weights = self._weights(kinds)
        if len({*weights}) == 1:
            return self.rng.choice(kinds)
        return self.rng.choice(kinds, p=np.divide(weights, np.sum(weights)))

    def _weights(self, kinds: tuple[str, ...]) -> list[float]:
        return [0.0 if kind in self.absent else self.gap.shares.get(kind, 1.0) for kind in kinds]

    def window(self, u0: float, u1: float, v0: float, v1: float) -> tuple[slice, slice]:
        """The rows and columns that a rectangle along the streets lies in, and a few more."""
        u, v = np.array([u0, u1, u0, u1]), np.array([v0, v0, v1, v1])
        places = (np.sin(self.angle) * u + np.cos(self.angle) * v, np.cos(self.angle) * u - np.sin(self.angle) * v)
        return tuple(slice(*np.clip([int(place.min() / self.step) - 1, int(place.max() / self.step) + 3], 0, size))
                     for place, size in zip(places, self.u.shape))

    def box(self, u0: float, u1: float, v0: float, v1: float) -> Region:
        """A rectangle along the streets."""
        window = self.window(u0, u1, v0, v1)
        u, v = self.u[window], self.v[window]
        return Region(window, (u >= u0) & (u < u1) & (v >= v0) & (v < v1))

    def blob(self, u: float, v: float, half_u: float, half_v: float, shore: float = 0.0) -> Region:
        """An ellipse with a wavy outline; its window leaves room for a shore."""
        most_u, most_v = (1.5 * half + shore for half in (half_u, half_v))
        window = self.window(u - most_u, u + most_u, v - most_v, v + most_v)
        angle = np.arctan2(self.v[window] - v, self.u[window] - u)
        outline = 1 + sum(self.rng.uniform(0.02, 0.14) * np.cos(k * angle + self.rng.uniform(0, 2 * np.pi))
                          for k in (2, 3, 5))
        return Region(window, np.hypot((self.u[window] - u) / half_u, (self.v[window] - v) / half_v) < outline)

    def crown(self, u: float, v: float, radius: float) -> None:
        """Paint one tree: a disc, bright towards the sun and dark on the far side."""
        to_sun_u = np.cos(self.angle) * SUN_DIRECTION[1] + np.sin(self.angle) * SUN_DIRECTION[0]
        to_sun_v = np.cos(self.angle) * SUN_DIRECTION[0] - np.sin(self.angle) * SUN_DIRECTION[1]
        window = self.window(u - radius, u + radius, v - radius, v + radius)
        at_u, at_v = self.u[window] - u, self.v[window] - v
        facing = (at_u * to_sun_u + at_v * to_sun_v) / radius
        region = Region(window, np.hypot(at_u, at_v) < radius)
        if "tree" not in self.gap.missing:
            self.paint(region, "tree", TREES, sunlight=np.clip(0.80 + 0.45 * facing, 0.25, 1.2))
