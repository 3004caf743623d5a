"""Finished runs -> figures that put methods beside each other (comparison.py)."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from torch import Tensor
from tqdm import tqdm

from datasets.harmonize import preprocess
from datasets.patches import PatchSampler
from model.errors import UserError
from utils.figures.comparison import (plot_features, plot_map_gallery, plot_seeds, plot_sensitivity,
                                      plot_severity)
from utils.figures.of_run import generated
from utils.run.folder import open_run
from utils.run.predict import BATCH, features, map_scene
from utils.run.selection import LAST, rule_words
from utils.tables.cells import of_rule
from utils.tables.layouts import alike
from utils.tables.collect import collect
from utils.tables.runs import named
from utils.trained.load import Trained, load_run

log = logging.getLogger(__name__)

PER_CLASS = 60            # samples of each class and domain in the plane of features
PERPLEXITY = 30.0         # of t-SNE, where there are samples enough for it
SIMULATED = "SimTarget"


def gallery(layout: str, folders: list[str | Path], rule: str = LAST.name, gpu: int | None = None,
            data_path: str | None = None) -> dict[str, Figure]:
    """Name -> figure of one layout of LAYOUTS, from the weights and scores of one selection rule.

    Raises UserError if the runs hold nothing for it.
    """
    return LAYOUTS[layout](named(of_rule(collect(folders), rule)), gpu, data_path)


def _seeds(runs: pd.DataFrame, *_) -> dict[str, Figure]:
    """Strip plots of all runs: which differences are larger than the seeds' own."""
    return {"seeds": plot_seeds(runs, f"κ of every seed on the target, {_rule(runs)}")}


def _severity(runs: pd.DataFrame, *_) -> dict[str, Figure]:
    return severity_figures(runs, runs["rule"].iloc[0])


def _sensitivity(runs: pd.DataFrame, *_) -> dict[str, Figure]:
    """Per pair, κ over every setting in which otherwise equal runs differ."""
    curves: dict[str, dict[str, pd.DataFrame]] = {}
    for name, group in alike(runs):
        for pair, of_pair in group.groupby("pair", sort=False):
            curves.setdefault(pair, {})[name] = of_pair
    if not curves:
        raise UserError("No two of these runs differ in one setting alone that is a number or a list.")
    return {f"sensitivity_{file_name(pair)}": plot_sensitivity(
        of_pair, f"{pair}: κ over one setting at a time, {_rule(runs)}; line: mean over seeds, band: ± std")
        for pair, of_pair in curves.items()}


def _rule(runs: pd.DataFrame) -> str:
    """How a title names the rule of these rows."""
    return rule_words(runs["rule"].iloc[0])


def severity_figures(runs: pd.DataFrame, rule: str) -> dict[str, Figure]:
    """Scores under a rule over the severity of the simulated gap.  Raises UserError if there are no two severities."""
    simulated = runs[runs["scenes"].str.endswith(SIMULATED)]
    simulated = simulated.assign(severity=[simulation["severity"] for simulation in simulated["simulation"]],
                                 drawing=[simulation["seed"] for simulation in simulated["simulation"]],
                                 gap=[simulation.get("gap", "") for simulation in simulated["simulation"]])
    figures = {}
    for (scenes, gap, drawing), chosen in simulated.groupby(["scenes", "gap", "drawing"]):
        if chosen["severity"].nunique() > 1:
            figures["_".join(filter(None, ("severity", file_name(scenes), gap, str(drawing))))] = plot_severity(
                chosen, f"{scenes}, simulation seed {drawing}{gap and f', {gap} gap'}, {rule_words(rule)}; "
                        "line: mean over n seeds, band: smallest to largest")
    if not figures:
        raise UserError("A figure over the severity needs runs on the simulated pair at two severities at least "
                        "(main.py transfer RUNS --severity 2).")
    return figures


def _maps(runs: pd.DataFrame, gpu: int | None, data_path: str | None) -> dict[str, Figure]:
    """Per pair, every method's map of the target."""
    figures = {}
    for pair, chosen in one_seed(runs):
        predictions, scene = {}, None
        for row, trained in _opened(chosen, gpu, data_path):
            scene = scene or trained.data.target              # a ceiling, which has half of the labels, comes last
            predictions[f"{row['name']}: AA {100 * row['aa']:.1f}, κ {100 * row['kappa']:.1f}"] = target_map(trained)
        figures[f"maps_{file_name(pair)}"] = plot_map_gallery(
            scene.cube, scene.rgb_bands, scene.labels, predictions, trained.class_names,
            f"{pair}: maps of the whole target; seed {chosen['seed'].iloc[0]}, {_rule(runs)}, scores in percent")
    return figures


def target_map(trained: Trained) -> np.ndarray:
    """A method's map of its whole target [H, W], 1..K; 0 where the scene has no data."""
    target, config = trained.data.target, trained.config
    image = map_scene(trained.method, preprocess(target.cube, config.scene_correction), trained.task.patch_size,
                      trained.device, config.backend, progress=False)
    image[~target.cube.any(axis=2)] = 0
    return image


def _features(runs: pd.DataFrame, gpu: int | None, data_path: str | None) -> dict[str, Figure]:
    """Per pair, the methods' features of held-out source (of training patches where none are held out) and of target
    patches in the plane (t-SNE)."""
    figures = {}
    for pair, chosen in one_seed(runs):
        shown = {}
        for row, trained in _opened(chosen, gpu, data_path):
            if not hasattr(trained.method.discriminator, "features"):
                log.info("%s has no features to show.", row["name"])
                continue
            samples = [_samples(sampler) for sampler in (trained.data.val or trained.data.train, trained.data.test)]
            found = np.concatenate([features(trained.method, x.split(BATCH)) for x, _ in samples])
            if not found.std():
                log.warning("%s gives every patch the same features; it is not shown.", row["name"])
                continue
            shown[row["name"]] = (_plane(found), np.concatenate([y for _, y in samples]),
                                  np.repeat(["source", "target"], [len(y) for _, y in samples]))
        if shown:
            figures[f"features_{file_name(pair)}"] = plot_features(
                shown, trained.class_names,
                f"{pair}: features in the plane (t-SNE); seed {chosen['seed'].iloc[0]}, {_rule(runs)}")
    if not figures:
        raise UserError("None of these methods has features to show.")
    return figures


def _domains(runs: pd.DataFrame, gpu: int | None, data_path: str | None) -> dict[str, Figure]:
    """Per pair and method that makes domains of its own, source, target and these domains in the plane: as patches, and
    as the classifier's features of them (t-SNE)."""
    figures = {}
    for pair, chosen in one_seed(runs):
        for row, trained in _opened(chosen, gpu, data_path):
            views = _with_domains(trained)
            if len(views) < 3 or not hasattr(trained.method.discriminator, "features"):
                continue
            patches = torch.cat([x for x, _ in views.values()])
            classes = np.concatenate([y for _, y in views.values()])
            domains = np.repeat(list(views), [len(y) for _, y in views.values()])
            shown = {words: (_plane(values), classes, domains) for words, values in (
                ("before: patches", patches.flatten(1).cpu().numpy()),
                ("after: features", features(trained.method, patches.split(BATCH))))}
            figures[f"domains_{file_name(pair)}_{file_name(row['name'])}"] = plot_features(
                shown, trained.class_names, f"{pair}: {row['name']}, domains in the plane (t-SNE); seed {row['seed']}, "
                                            f"{_rule(runs)}")
    if not figures:
        raise UserError("None of these methods makes domains of its own.")
    return figures


def _with_domains(trained: Trained) -> dict[str, tuple[Tensor, np.ndarray]]:
    """Source, target and what the method makes of the source (mixtures left out): patches [N, B, P, P], classes [N]."""
    data = trained.data
    x, y = _samples(data.val or data.train)
    made = {name: (patches.detach(), y) for name, patches in generated(trained.method, x).items() if "mixed" not in name}
    return {"source": (x, y), **made, "target": _samples(data.test)}


def _plane(values: np.ndarray) -> np.ndarray:
    """Samples [N, D] in the plane by t-SNE: [N, 2]."""
    return TSNE(init="pca", random_state=0, perplexity=min(PERPLEXITY, (len(values) - 1) / 3)
                ).fit_transform(values / max(values.std(), np.finfo(np.float32).tiny))


def one_seed(runs: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Per pair one run of every method, all of the seed that most methods have (the lowest of them)."""
    for pair, of_pair in runs.groupby("pair", sort=False):
        counts = of_pair.groupby("seed")["name"].nunique()
        chosen = of_pair[of_pair["seed"] == counts.idxmax()]
        for name in sorted(set(of_pair["name"]) - set(chosen["name"])):
            log.warning("%s is not shown on %s: it has no run with seed %d.", name, pair, counts.idxmax())
        yield pair, chosen


def _opened(runs: pd.DataFrame, gpu: int | None, data_path: str | None) -> Iterator[tuple[pd.Series, Trained]]:
    """Each run's row and its trained method."""
    for _, row in tqdm(runs.iterrows(), total=len(runs), unit="run", disable=not sys.stderr.isatty()):
        yield row, load_run(open_run(row["folder"]), row["rule"], gpu, data_path)


def _samples(sampler: PatchSampler) -> tuple[Tensor, np.ndarray]:
    """The first PER_CLASS patches of every class in a fixed shuffle, [N, B, P, P], and their classes [N]."""
    labels = sampler.labels.cpu().numpy()
    shuffled = np.random.default_rng(0).permutation(len(labels))
    rank = pd.Series(labels[shuffled]).groupby(labels[shuffled]).cumcount().to_numpy()
    index = np.sort(shuffled[rank < PER_CLASS])
    return sampler.patches(torch.from_numpy(index).to(sampler.labels.device)), labels[index]


def file_name(pair: str) -> str:
    return re.sub(r"[^\w.-]+", "_", pair.replace(" → ", "-")).strip("_")


LAYOUTS: dict[str, Callable[[pd.DataFrame, int | None, str | None], dict[str, Figure]]] = {
    "maps": _maps, "features": _features, "severity": _severity, "seeds": _seeds,
    "sensitivity": _sensitivity, "domains": _domains}
