"""Colours of the figures: class colours that survive colour blindness, false colour, label images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import to_rgb

RGB = tuple[float, float, float]

# 1-8: Okabe & Ito ("Color Universal Design", 2008), ordered so that neighbours and the first three differ; black comes
# last, since it also reads as missing data.  9-20: found by farthest-point search over sRGB (CIELAB lightness 18-90),
# each as far as possible from those before it, from white and from UNLABELLED, by the smallest of half the CIELAB
# distance in normal vision and the whole one in simulated deuteranopia and protanopia (Machado et al., IEEE TVCG 15,
# 2009).  The search adds no pair closer than 17 in either simulation; Okabe-Ito's own closest pair is as close.
_CLASS_COLOURS = (
    "#009E73", "#F0E442", "#D55E00", "#56B4E9", "#E69F00", "#0072B2", "#CC79A7", "#000000",
    "#00FF88", "#554400", "#0000FF", "#331188", "#DD22FF", "#004422", "#EE1155", "#551144",
    "#BBAA55", "#BB0077", "#AADDAA", "#6611CC",
)
UNLABELLED: RGB = (0.90, 0.90, 0.90)
CORRECT: RGB = to_rgb("#8496A9")            # no class has these two; lightness alone tells them apart
WRONG: RGB = to_rgb("#B2000C")

LINE_COLOURS = tuple(_CLASS_COLOURS[index] for index in (5, 2, 0, 6, 4, 3))
_DOMAIN_COLOURS = {"source": "#000000", "target": "#D55E00", "generated a": "#0072B2", "generated b": "#009E73"}
_OTHER_DOMAINS = ("#CC79A7", "#E69F00", "#56B4E9", "#554400")


def class_colours(n: int) -> list[RGB]:
    """n colours for the classes 1..n, the first of them the same for every n.

    Distinct for colour-blind readers up to 20; beyond that the list repeats, each time half-way closer to white.
    """
    base = [to_rgb(code) for code in _CLASS_COLOURS]
    colours = []
    for index in range(n):
        turn, place = divmod(index, len(base))
        colours.append(tuple(1 - (1 - channel) * 0.5 ** turn for channel in base[place]))
    return colours


def domain_colours(names: Sequence[str]) -> list[RGB]:
    """One line colour per domain: the usual ones always look the same, others take the next free colour."""
    others = [name for name in names if name not in _DOMAIN_COLOURS]
    free = {name: _OTHER_DOMAINS[index % len(_OTHER_DOMAINS)] for index, name in enumerate(others)}
    return [to_rgb(_DOMAIN_COLOURS.get(name) or free[name]) for name in names]


def false_colour(cube: np.ndarray, rgb_bands: Sequence[int], percentiles: tuple[float, float] = (2, 98)) -> np.ndarray:
    """Three bands of cube [H, W, B] as an image [H, W, 3] in 0..1, each band stretched between two percentiles.

    Percentiles come from the valid pixels (finite, not zero in all three bands); the others become black.  A constant
    band becomes mid-grey.
    """
    image = np.asarray(cube)[..., list(rgb_bands)].astype(np.float64)
    valid = np.isfinite(image).all(axis=-1) & (image != 0).any(axis=-1)
    stretched = np.zeros_like(image)
    if not valid.any():
        return stretched
    pixels = image[valid]                                                   # [valid pixels, 3]
    low, high = np.percentile(pixels, percentiles, axis=0)
    span = high - low
    scaled = np.divide(pixels - low, span, out=np.full_like(pixels, 0.5), where=span > 0)
    stretched[valid] = np.clip(scaled, 0, 1)
    return stretched


def label_image(labels: np.ndarray, n_classes: int) -> np.ndarray:
    """labels [H, W] with 0 = unlabelled, 1..K -> colours [H, W, 3]."""
    return np.array([UNLABELLED, *class_colours(n_classes)])[labels]


def error_image(labels: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Where the prediction of a labelled pixel is right or wrong, [H, W] each -> colours [H, W, 3]."""
    outcome = np.where(labels == 0, 0, np.where(labels == prediction, 1, 2))
    return np.array([UNLABELLED, CORRECT, WRONG])[outcome]


def text_on(colour: Sequence[float]) -> str:
    """Black or white, whichever has the higher contrast on this background (WCAG 2 relative luminance)."""
    channels = np.asarray(colour[:3], dtype=float)
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return "black" if linear @ (0.2126, 0.7152, 0.0722) > 0.179 else "white"

