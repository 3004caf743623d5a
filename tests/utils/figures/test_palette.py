"""Colours: they survive colour blindness; false colour shows what the bands hold."""

import numpy as np
import pytest

from utils.figures import palette

# Simulated dichromacy, applied to linear RGB (Machado, Oliveira & Fernandes, IEEE TVCG 15, 2009, severity 1.0).
DEUTERANOPIA = np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                         [-0.011820, 0.042940, 0.968881]])
PROTANOPIA = np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                       [-0.003882, -0.048116, 1.051998]])
XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
                [0.0193339, 0.1191920, 0.9503041]])


def lab(colours, vision=np.eye(3)):
    """sRGB [n, 3] -> CIELAB (D65) as seen with this vision."""
    colours = np.asarray(colours)
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    x, y, z = (np.clip(linear @ vision.T, 0, 1) @ XYZ.T / (0.95047, 1.0, 1.08883)).T
    fx, fy, fz = (np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116) for t in (x, y, z))
    return np.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], axis=1)


def distances(colours, vision):
    """Smallest distance between any two colours, and between neighbours in the list."""
    seen = lab(colours, vision)
    apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1)
    return apart[np.triu_indices(len(seen), 1)].min(), np.diag(apart, 1).min()


@pytest.mark.parametrize("n", [7, 12, 16, 20])
@pytest.mark.parametrize("vision", [np.eye(3), DEUTERANOPIA, PROTANOPIA], ids=["normal", "deuteranopia", "protanopia"])
def test_class_colours_are_distinct(n, vision):
    closest, neighbours = distances(palette.class_colours(n), vision)
    assert closest > 16 and neighbours > 19


def test_class_colours_differ_from_the_background():
    for vision in (np.eye(3), DEUTERANOPIA, PROTANOPIA):
        colours, background = lab(palette.class_colours(20), vision), lab([palette.UNLABELLED, (1, 1, 1)], vision)
        assert np.linalg.norm(colours[:, None] - background[None], axis=-1).min() > 16
        assert distances([palette.UNLABELLED, palette.CORRECT, palette.WRONG], vision)[0] > 30


def test_class_colours_are_the_same_for_every_number_and_never_run_out():
    assert palette.class_colours(16)[:7] == palette.class_colours(7)
    assert len(set(palette.class_colours(60))) == 60


def test_domain_colours_are_distinct_and_follow_the_name():
    names = ["source", "generated a", "anything", "generated b", "target", "more"]
    assert len(set(palette.domain_colours(names))) == 6
    assert palette.domain_colours(["source", "target"])[1] == palette.domain_colours(names)[4]


def test_false_colour_stretches_each_band_between_the_percentiles():
    cube = np.stack([np.linspace(1, 2, 100), np.linspace(10, 500, 100), np.linspace(-3, -9, 100)], -1)[None]
    image = palette.false_colour(cube, (2, 0, 1), percentiles=(10, 90))
    expected = np.clip((np.linspace(0, 1, 100) - 0.1) / 0.8, 0, 1)
    np.testing.assert_allclose(image[0], np.stack([expected[::-1], expected, expected], -1), atol=1e-9)


def test_false_colour_leaves_broken_pixels_out_of_the_stretch():
    cube = np.random.default_rng(0).random((8, 9, 4)) + 1
    clean = palette.false_colour(cube[:, :8], (0, 1, 2))
    cube[:4, 8], cube[4:, 8] = 0, np.nan
    cube[0, 8, 0] = np.inf
    image = palette.false_colour(cube, (0, 1, 2))
    np.testing.assert_array_equal(image[:, :8], clean)
    assert (image[:, 8] == 0).all()


def test_false_colour_of_constant_bands_and_of_nothing():
    cube = np.full((3, 3, 2), 7, np.uint16)
    cube[..., 1] = np.arange(9).reshape(3, 3)
    image = palette.false_colour(cube, (0, 1, 1))
    assert (image[..., 0] == 0.5).all() and np.ptp(image[..., 1]) == 1
    assert (palette.false_colour(np.zeros((2, 2, 3)), (0, 1, 2)) == 0).all()


def test_text_contrasts_with_its_cell():
    assert palette.text_on((0, 0, 0.3)) == "white" and palette.text_on((1, 1, 0.7)) == "black"
