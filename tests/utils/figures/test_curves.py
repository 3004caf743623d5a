"""Loss curves and class spectra."""

import numpy as np
import pytest

from figure_checks import legend_texts, legible, shown
from utils.figures import curves


def epochs(n, oracle=False):
    score = {"oa": 0.9, "aa": 0.8, "kappa": 0.7}
    return [{"epoch": epoch, "losses": {"ce_a": 1 / epoch, "ce_b": 1.0, "ce_a_mix": 2.0, "ce_b_mix": 1.5,
                                        "consistency_min": -0.1, "consistency_max": -0.2 / epoch,
                                        "mi": 10.0 ** (7 - epoch), "loss_min": 5.5},
             "source_val": score, **({"oracle": score} if oracle else {})} for epoch in range(1, n + 1)]


def labels_of(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_loss_families_share_panels():
    figure = curves.plot_losses(epochs(6, oracle=True), "title")
    assert [labels_of(axes) for axes in figure.axes[:4]] == [
        ["ce_a", "ce_b", "ce_a_mix", "ce_b_mix"], ["consistency_min", "consistency_max"], ["mi"], ["loss_min"]]
    assert [axes.get_yscale() for axes in figure.axes] == ["linear", "linear", "symlog", "linear", "linear"]
    scores = figure.axes[4]
    assert "target (oracle; not used)" in labels_of(scores) and len(scores.lines) == 6
    assert [line.get_linestyle() for line in scores.lines] == ["-"] * 3 + ["--"] * 3
    assert scores.lines[0].get_ydata()[0] == pytest.approx(90)         # fractions are shown in percent
    assert legible(figure)


def test_scores_under_perturbations_are_drawn_where_they_were_recorded():
    records = epochs(4, oracle=True)
    for record in records[1:]:              # the first one lacks them: a gap
        record["shifted_source"] = {"oa": 0.6, "aa": 0.5, "kappa": 0.4, "views": {}}
    figure = curves.plot_losses(records, "title")
    scores = figure.axes[4]
    assert [line.get_linestyle() for line in scores.lines] == ["-"] * 3 + [":"] * 3 + ["--"] * 3
    assert list(scores.lines[3].get_xdata()) == [2, 3, 4] and scores.lines[3].get_ydata() == pytest.approx(60)
    assert "source, perturbed" in labels_of(scores) and legible(figure)


def test_single_epoch_is_visible():
    figure = curves.plot_losses(epochs(1), "one")
    for axes in figure.axes:
        drawn = [line for line in axes.lines if len(line.get_xdata())]
        assert drawn and all(line.get_marker() == "o" for line in drawn)
        assert all(float(tick).is_integer() for tick in axes.get_xticks())
    assert "target (oracle; not used)" not in labels_of(figure.axes[-1]) and legible(figure)


def test_any_losses_and_gaps_are_drawn():
    records = [{"epoch": epoch, "losses": {"ce": 1.0, "odd name": float("nan") if epoch == 2 else epoch}}
               for epoch in range(5)]
    records[3]["losses"]["late"] = -4.0
    figure = curves.plot_losses(records, "ERM")
    assert [labels_of(axes) for axes in figure.axes] == [["ce"], ["odd name"], ["late"]]
    assert list(figure.axes[1].lines[0].get_xdata()) == [0, 1, 3, 4]
    with pytest.raises(ValueError, match="no epoch"):
        curves.plot_losses([], "none")


@pytest.mark.parametrize("values, scale", [([1e6, 1e3, 10.0], "symlog"), ([-1e5, 3.0, 1.0], "symlog"),
                                           ([1.0, 0.5, 0.1], "linear"), ([0.0, 0.0], "linear"),
                                           (list(np.linspace(-1, 1, 400)), "linear")])
def test_scale_of_a_loss(values, scale):
    figure = curves.plot_losses([{"epoch": k, "losses": {"mi": v}} for k, v in enumerate(values)], "")
    assert figure.axes[0].get_yscale() == scale


def fake_spectra(n_classes, bands=5, scale=1.0, seed=0):
    draw = np.random.default_rng(seed)
    return scale * draw.random((n_classes, bands)), 0.1 * scale * draw.random((n_classes, bands))


def test_class_spectra():
    spectra, labels = np.array([[1.0, 2], [3, 6], [9, 9], [5, 5]]), np.array([1, 1, 0, 3])
    mean, deviation = curves.class_spectra(spectra, labels, 3)
    np.testing.assert_allclose(mean, [[2, 4], [np.nan, np.nan], [5, 5]])
    np.testing.assert_allclose(deviation, [[1, 2], [np.nan, np.nan], [0, 0]])


@pytest.mark.parametrize("n_classes", [1, 3, 7, 16])
def test_spectra_have_a_panel_per_class(n_classes):
    spectra = {"source": fake_spectra(n_classes), "target": fake_spectra(n_classes, seed=1)}
    names = [f"class {index} with a rather long name" for index in range(n_classes)]
    figure = curves.plot_spectra(spectra, np.linspace(400, 1000, 5), names, "title")
    assert [title.replace("\n", " ") for title in shown(figure)] == names
    assert legend_texts(figure) == ["source", "target"]
    assert figure.axes[-1].get_xlabel() == "wavelength (nm)" and all(len(axes.lines) == 2 for axes in figure.axes)
    assert legible(figure)


def test_large_generated_spectra_get_the_right_hand_axis():
    spectra = {"source": fake_spectra(3), "generated a": fake_spectra(3, scale=40), "target": fake_spectra(3, seed=2)}
    figure = curves.plot_spectra(spectra, None, ("a", "b", "c"), "released")
    left, right = figure.axes[:3], figure.axes[3:]
    assert [len(axes.lines) for axes in figure.axes] == [2, 2, 2, 1, 1, 1]
    assert legend_texts(figure) == ["source", "generated a (right-hand axis)", "target"]
    assert right[0].get_ylim()[1] > 10 > left[0].get_ylim()[1]
    assert len({axes.get_ylim() for axes in left}) == len({axes.get_ylim() for axes in right}) == 1
    assert left[0].get_xlabel() == "band" and right[-1].get_ylabel() == "dashed curves"
    assert all(a.get_position().bounds == b.get_position().bounds for a, b in zip(left, right))
    assert legible(figure)


def test_absent_classes_are_skipped():
    mean, deviation = fake_spectra(3)
    mean[1], deviation[1] = np.nan, np.nan
    absent = np.full((3, 5), np.nan)
    figure = curves.plot_spectra({"source": (mean, deviation), "target": (absent, absent)}, None, "abc", "")
    assert [len(axes.lines) for axes in figure.axes] == [1, 0, 1]


def test_no_line_bridges_a_gap_in_the_bands():
    wavelengths = np.r_[400:1300:10, 1500:1700:10]
    mean = np.ones((1, len(wavelengths)))
    figure = curves.plot_spectra({"source": (mean, 0 * mean)}, wavelengths, ["grass"], "title")
    line = max((line for axes in figure.axes for line in axes.get_lines()), key=lambda line: len(line.get_xdata()))
    assert np.isnan(line.get_ydata()).sum() == 1 and len(line.get_xdata()) == len(wavelengths) + 1
