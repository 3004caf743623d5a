"""All figures of a run, from its folder."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from datasets.harmonize import preprocess
from datasets.patches import PatchSampler
from model.methods import Method
from model.states import buffers_kept
from utils.figures import curves, scenes, sheet
from utils.run.folder import RunFolder, run_label
from utils.run.predict import BATCH, map_scene
from utils.run.records import damaged
from utils.run.selection import LAST, rule_words
from utils.trained.load import Trained, load_run

log = logging.getLogger(__name__)

SHEET_ROWS = 8            # source patches on the patch sheet
SPECTRA_PATCHES = 2048    # source patches whose generated versions give the mean spectra


def draw_run(run: RunFolder, rule: str = LAST.name, gpu: int | None = None, data_path: str | None = None,
             progress: bool = True) -> list[Path]:
    """Draw every figure of a run, with the weights that a rule selected, into its folder `figures` (those of another
    rule than `last` into a folder of the rule's name there); returns the files."""
    with run:
        return _drawn(run, load_run(run, rule, gpu, data_path), rule, progress)


def _drawn(run: RunFolder, trained: Trained, rule: str, progress: bool) -> list[Path]:
    """A figure is written before the next one is made: one of a scene with hundreds of classes takes much memory."""
    paths, folder = [], run.figures if rule == LAST.name else run.figures / rule
    for name, make in _figures(run, trained, rule, progress).items():
        paths.append(folder / f"{name}.png")
        sheet.save(make(), paths[-1])
    log.info("%d figures in %s", len(paths), folder)
    return paths


def _figures(run: RunFolder, trained: Trained, rule: str, progress: bool) -> dict[str, Callable[[], Figure]]:
    """The name of every figure of a run, and what makes it."""
    entry = run.evaluation_of(rule)
    data, title, epochs = trained.data, f"{run_label(trained.config)}, seed {trained.config.seed}", epoch_records(run)
    found = {"losses": lambda: curves.plot_losses(epochs, f"Training: {title}"),
             "spectra": lambda: _spectra(trained, title), "patches": lambda: _patches(trained, title)}
    if data.target:
        shown = f"{data.target.name}: the halves of its labels that are trained on and scored on" \
            if trained.config.ceiling else f"{data.source.name} and {data.target.name}"
        found["pair"] = lambda: scenes.plot_pair(data.source, data.target, shown)
        found |= _target_figures(trained, entry, title, rule, progress)
    return found


def epoch_records(run: RunFolder) -> list[dict]:
    """Epoch records, with the oracle's target scores beside them where they were recorded.  Raises RunFolderError if
    there is none."""
    found = run.records(run.epochs, "losses", *run.source_scores)
    if not found:
        raise damaged(run.epochs, "it holds no epoch")
    oracle = {record["epoch"]: record["target"] for record in run.records(run.oracle)}
    return [record | ({"oracle": oracle[record["epoch"]]} if record["epoch"] in oracle else {}) for record in found]


def _target_figures(trained: Trained, entry: dict[str, Any], title: str, rule: str,
                    progress: bool) -> dict[str, Callable[[], Figure]]:
    data, config = trained.data, trained.config
    target, names = data.target, data.source.class_names
    score = entry.get("target")
    text = "" if score is None else (f", {rule_words(rule)}: OA {100 * score['oa']:.1f} %, AA {100 * score['aa']:.1f} %, "
                                     f"κ {100 * score['kappa']:.1f}")

    def maps() -> Figure:
        cube = preprocess(target.cube, config.scene_correction)
        prediction = map_scene(trained.method, cube, config.patch_size, trained.device,
                               config.backend, progress)
        return scenes.plot_maps(target.cube, target.rgb_bands, target.labels, prediction, names,
                                f"{target.name}: {title}{text}")
    found = {"maps": maps}
    if score is not None:
        found["confusion"] = lambda: scenes.plot_confusion(np.array(entry["confusion"]), names,
                                                           f"{target.name}: {title}{text}")
    return found


def _spectra(trained: Trained, title: str):
    """Mean ± std spectra of the patches' centre pixels per class: source, what the method makes of it, target."""
    data, names = trained.data, trained.data.source.class_names
    centres: dict[str, list[np.ndarray]] = {}
    labels = []
    for x, y in data.train.in_order(BATCH, SPECTRA_PATCHES):
        labels.append(y.cpu().numpy())
        for name, patches in ({"source": x} | generated(trained.method, x)).items():
            centres.setdefault(name, []).append(_centre(patches))
    truth = np.concatenate(labels) + 1
    spectra = {name: curves.class_spectra(np.concatenate(values), truth, len(names))
               for name, values in centres.items() if "mixed" not in name}
    if data.target and data.test:
        labelled = data.target.labels > 0
        cube = preprocess(data.target.cube, trained.config.scene_correction)
        spectra["target"] = curves.class_spectra(cube[labelled], data.target.labels[labelled], len(names))
    return curves.plot_spectra(spectra, data.source.wavelengths, names, f"Spectra per class: {title}")


def _patches(trained: Trained, title: str):
    """A sheet of source patches of different classes beside their generated and mixed versions."""
    train: PatchSampler = trained.data.train
    names = trained.data.source.class_names
    labels = train.labels.cpu().numpy()
    first = [np.flatnonzero(labels == k) for k in np.unique(labels)]
    index = [first[i % len(first)][(i // len(first)) % len(first[i % len(first)])] for i in range(SHEET_ROWS)]
    x = train.patches(torch.tensor(index, device=train.labels.device))
    columns = {"source": x} | generated(trained.method, x)
    order = sorted(columns, key=lambda name: (name != "source", name.split()[-1] if "mixed" not in name else
                                              name.split()[0], "mixed" in name))
    return scenes.plot_patches({name: columns[name].cpu().numpy() for name in order}, trained.data.source.rgb_bands,
                                [names[labels[i]] for i in index], f"Source patches and their versions: {title}")


def generated(method: Method, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The method's versions of patches, its networks in training mode as they were when they made them, their
    running statistics left as they are."""
    with buffers_kept(method):
        method.train()
        views = method.generated_views(x)
    method.eval()
    return views


def _centre(patches: torch.Tensor) -> np.ndarray:
    """Centre spectra [N, B] of patches [N, B, P, P]."""
    middle = patches.shape[-1] // 2
    return patches[:, :, middle, middle].cpu().numpy()
