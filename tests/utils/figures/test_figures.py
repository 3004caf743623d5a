"""Maps, confusion matrices, patch sheets and scene pairs: what is drawn, and that it is legible."""

import os
from pathlib import Path

import numpy as np
import pytest
from matplotlib.cbook import is_math_text
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from datasets.scene import Scene
from figure_checks import legend_texts, legible, shown
from fresh import in_a_fresh_process, modules_after
from utils.commands.registry import COMMANDS
from utils.figures import comparison, palette, scenes, sheet

HOUSTON = ("grass healthy", "grass stressed", "trees", "water", "residential buildings", "non-residential buildings",
           "road")


def fake_scene(height, width, n_classes, seed=0, bands=6, **known):
    draw = np.random.default_rng(seed)
    cube = draw.random((height, width, bands), dtype=np.float32)
    labels = draw.integers(0, n_classes + 1, (height, width))
    return Scene(f"scene{seed}", cube, labels, tuple(f"class {index}" for index in range(n_classes)),
                 rgb_bands=(4, 2, 1), **known)


def fake_maps(height, width, n_classes, names=None):
    scene = fake_scene(height, width, n_classes)
    prediction = np.random.default_rng(1).integers(1, n_classes + 1, (height, width))
    return scenes.plot_maps(scene.cube, scene.rgb_bands, scene.labels, prediction, names or scene.class_names, "OA 50")


@pytest.mark.parametrize("height, width, rows", [(21, 95, 5), (15, 25, 3), (20, 20, 2), (60, 20, 1)])
def test_map_panels_follow_the_shape_of_the_scene(height, width, rows):
    figure = fake_maps(height, width, 7, HOUSTON)
    assert [title.replace("\n", " ") for title in shown(figure)] == [
        "scene, false colour", "ground truth", "prediction, labelled pixels", "prediction, whole scene", "errors"]
    assert len({round(axes.get_position().y0, 6) for axes in figure.axes}) == rows
    for axes in figure.axes:
        left, low, box_width, box_height = np.multiply(axes.get_position().bounds, np.tile(figure.get_size_inches(), 2))
        dots = 150 * np.array([left, low, box_width, box_height])
        np.testing.assert_allclose(dots, np.round(dots), atol=1e-6)         # or image pixels would be uneven
        assert box_width / box_height == pytest.approx(width / height, rel=0.01)
    assert legible(figure)


@pytest.mark.slow_but("128-128")
@pytest.mark.parametrize("height, width", [(210, 954), (250, 1376), (610, 340), (128, 128)])
def test_scene_pixels_are_whole_dots(height, width):
    figure = fake_maps(height, width, 3)
    for axes in figure.axes:
        dots = axes.get_position().width * figure.get_figwidth() * 150 / width
        assert dots >= 1 and dots == pytest.approx(round(dots), abs=1e-6)


@pytest.mark.parametrize("n_classes", [1, 7, 12, 16])
def test_map_legend_holds_every_class_with_its_count(n_classes):
    scene = fake_scene(30, 40, n_classes)
    figure = scenes.plot_maps(scene.cube, scene.rgb_bands, scene.labels, np.maximum(scene.labels, 1),
                               scene.class_names, "OA 100")
    counts = [f"{name} ({count})" for name, count in zip(scene.class_names, scene.class_counts())]
    assert legend_texts(figure) == [*counts, "unlabelled", "correct (100.0 %)", "wrong (0.0 %)"]
    assert legible(figure)


def test_maps_show_the_right_colours():
    labels, prediction = np.array([[0, 1, 2]]), np.array([[2, 1, 1]])
    figure = scenes.plot_maps(np.ones((1, 3, 1)), (0, 0, 0), labels, prediction, ("a", "b"), "")
    _, truth, at_labels, whole, errors = (axes.images[0].get_array()[0] for axes in figure.axes)
    first, second = palette.class_colours(2)
    np.testing.assert_allclose(truth, [palette.UNLABELLED, first, second])
    np.testing.assert_allclose(at_labels, [palette.UNLABELLED, first, first])
    np.testing.assert_allclose(whole, [second, first, first])
    np.testing.assert_allclose(errors, [palette.UNLABELLED, palette.CORRECT, palette.WRONG])
    assert all(axes.images[0].get_interpolation() == "nearest" for axes in figure.axes)


def test_maps_without_labels_show_scene_and_prediction_only():
    scene = fake_scene(10, 12, 3)
    figure = scenes.plot_maps(scene.cube, scene.rgb_bands, 0 * scene.labels, scene.labels, scene.class_names, "new")
    assert len(figure.axes) == 2 and legend_texts(figure) == list(scene.class_names)


def test_long_titles_are_broken():
    scene = fake_scene(10, 12, 3)
    figure = scenes.plot_maps(scene.cube, scene.rgb_bands, scene.labels, scene.labels, scene.class_names, "long " * 60)
    assert "\n" in figure.texts[0].get_text() and legible(figure)


@pytest.mark.parametrize("n_classes", [2, 7, 12, 16, 20])
def test_confusion_shows_row_percents(n_classes):
    confusion = np.random.default_rng(0).integers(1, 50, (n_classes, n_classes))
    names = [f"class {index}" for index in range(n_classes)]
    figure = scenes.plot_confusion(confusion, names, "title")
    axes = figure.axes[0]
    np.testing.assert_allclose(axes.images[0].get_array().sum(axis=1), 100)
    assert [label.get_text() for label in axes.get_xticklabels()] == names
    assert [label.get_text() for label in axes.get_yticklabels()] == names
    written = [text.get_text() for text in axes.texts]
    assert (f"{100 * confusion[0, 1] / confusion[0].sum():.1f}" in written) == (n_classes <= 16)
    assert f"{confusion[1].sum():,}" in written
    assert min(text.get_fontsize() for text in axes.texts) >= 7


@pytest.mark.slow_but("$5")
@pytest.mark.parametrize("name", [r"$\frac$", r"a $\nothing{$ b", "$5", r"\$x$", "$$", "a\\"])
def test_a_class_called_like_a_formula_is_drawn_as_it_is(tmp_path, name):
    scene, names = fake_scene(10, 12, 3), (name, "b", "c")
    made = [scenes.plot_maps(scene.cube, scene.rgb_bands, scene.labels, scene.labels, names, name),
            scenes.plot_confusion(np.eye(3), names, name),
            scenes.plot_patches({name: np.ones((2, 6, 5, 5))}, (4, 2, 1), names[:2], name),
            comparison.plot_map_gallery(scene.cube, scene.rgb_bands, scene.labels, {name: scene.labels}, names, name)]
    for figure in made:
        sheet.save(figure, tmp_path / "a.png")
        assert not any(is_math_text(text.get_text()) for text in figure.findobj(Text))


def test_confusion_with_an_absent_class_and_one_never_predicted():
    figure = scenes.plot_confusion(np.array([[3, 1, 0], [0, 0, 0], [5, 0, 0]]), ("a", "b", "c"), "")
    axes = figure.axes[0]
    assert np.isnan(np.ma.filled(axes.images[0].get_array(), np.nan)).any(axis=1).tolist() == [False, True, False]
    written = [text.get_text() for text in axes.texts]
    assert written.count("–") == 1 and "0.0" not in written       # class c; empty cells stay blank


def test_patch_sheet():
    draw = np.random.default_rng(0)
    kinds = ("source", "generated a", "mixed a", "generated b", "mixed b")
    patches = {kind: draw.random((3, 6, 5, 5)) * 10 ** index for index, kind in enumerate(kinds)}
    figure = scenes.plot_patches(patches, (4, 2, 1), ["trees", "road", "road"], "title")
    assert len(figure.axes) == 15 and shown(figure) == list(kinds)
    assert [axes.get_ylabel() for axes in figure.axes[:3]] == ["trees", "road", "road"]
    assert "stretched" in figure.texts[1].get_text() and legible(figure)
    for first, images in zip((0, 3), patches.values()):             # one stretch per column, red first
        drawn = np.array([axes.images[0].get_array() for axes in figure.axes[first:first + 3]])
        values = images[:, (4, 2, 1)].transpose(0, 2, 3, 1)
        low, high = np.percentile(values, (2, 98), axis=(0, 1, 2))
        np.testing.assert_allclose(drawn, np.clip((values - low) / (high - low), 0, 1))


@pytest.mark.slow_but("shapes2-1")
@pytest.mark.parametrize("shapes, rows", [(((21, 95), (25, 100)), 4), (((15, 25), (14, 25)), 2),
                                          (((20, 20), (30, 25)), 1), (((61, 34), (110, 71)), 1)])
def test_pair(shapes, rows):
    waves = {"wavelengths": np.linspace(400, 900, 6)}
    source, target = fake_scene(*shapes[0], 7, **waves), fake_scene(*shapes[1], 7, seed=1, **waves)
    figure = scenes.plot_pair(source, target, "pair")
    maps, curves = figure.axes[:4], figure.axes[4:]
    assert len({round(axes.get_position().y1, 3) for axes in maps}) == rows
    assert [axes.get_title() for axes in curves] == list(source.class_names)
    counts = [f"{name} ({ours:,} / {theirs:,})" for name, ours, theirs in
              zip(source.class_names, source.class_counts(), target.class_counts())]
    assert legend_texts(figure) == [*counts, "unlabelled", "source", "target"]
    assert curves[-1].get_xlabel() == "wavelength (nm)" and legible(figure)


def test_pair_draws_normalised_spectra():
    cube = np.zeros((4, 5, 2), np.float32)
    cube[:, :] = (300, 400)
    labels = np.zeros((4, 5), int)
    labels[0] = 1
    figure = scenes.plot_pair(*(Scene(name, cube, labels, ("only",)) for name in "st"), "")
    np.testing.assert_allclose(figure.axes[4].lines[0].get_ydata(), [0.6, 0.8])
    assert figure.axes[4].get_xlabel() == "band"


def test_save_creates_the_folder_and_is_reproducible(tmp_path):
    for name in ("one", "two"):
        sheet.save(fake_maps(20, 30, 3), tmp_path / "new" / "folder" / f"{name}.png")
    one, two = ((tmp_path / "new" / "folder" / f"{name}.png").read_bytes() for name in ("one", "two"))
    assert one == two
    figure = fake_maps(20, 30, 3)
    height, width = imread(tmp_path / "new" / "folder" / "one.png").shape[:2]
    np.testing.assert_allclose([width, height], figure.get_size_inches() * 150, atol=1)


def test_save_replaces_atomically(tmp_path, monkeypatch):
    path = tmp_path / "map.png"
    path.write_bytes(b"old")
    replaced = []
    monkeypatch.setattr(os, "replace", lambda part, whole: replaced.append((path.read_bytes(), imread(part).ndim)))
    sheet.save(Figure((1, 1)), path)
    assert replaced == [(b"old", 3)]


def test_pyplot_stays_out():
    """pyplot keeps global state and may look for a display."""
    modules = [f"utils.figures.{path.stem}" for path in Path(sheet.__file__).parent.glob("[!_]*.py")]
    assert len(modules) > 5
    loaded = in_a_fresh_process(modules_after, [*modules, *(command.module for command in COMMANDS.values())])
    assert {"matplotlib.figure", *modules} <= loaded and "matplotlib.pyplot" not in loaded


def test_a_large_page_gets_fewer_dots_and_an_ordinary_one_all(tmp_path, monkeypatch):
    for inches, most, expected in (((4, 2), sheet.MOST_PIXELS, (600, 300)), ((4, 2), 20_000, (200, 100))):
        monkeypatch.setattr(sheet, "MOST_PIXELS", most)
        sheet.save(Figure(inches), tmp_path / "page.png")
        assert imread(tmp_path / "page.png").shape[1::-1] == expected


@pytest.mark.parametrize("n_classes", [scenes.MOST_RESAMPLED, scenes.MOST_RESAMPLED + 1])
def test_a_confusion_of_many_classes_is_drawn_cell_by_cell_in_the_same_place_and_colours(n_classes):
    confusion = np.eye(n_classes, dtype=int) * 5
    confusion[0, 1], confusion[2] = 3, 0
    axes = scenes.plot_confusion(confusion, [f"c{k}" for k in range(n_classes)], "title").axes[0]
    assert bool(axes.images) == (n_classes <= scenes.MOST_RESAMPLED)
    shown, = [*axes.images, *axes.collections]
    share = np.ma.filled(shown.get_array().reshape(n_classes, n_classes), np.nan)
    assert share[0, :2] == pytest.approx([62.5, 37.5]) and np.isnan(share[2]).all() and share[4, 4] == 100
    assert axes.get_xlim() == (-0.5, n_classes - 0.5) and axes.get_ylim() == (n_classes - 0.5, -0.5)
    assert shown.cmap.get_bad() == pytest.approx((*palette.UNLABELLED, 1))
