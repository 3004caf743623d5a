"""The pictures of a report: maps, scores and curves of all runs, figures of one run of each method."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from tqdm import tqdm

from model.errors import UserError
from utils.figures import curves, scenes, study as study_figures
from utils.figures.comparison import plot_map_gallery, plot_ranks, plot_seeds
from utils.figures.of_run import epoch_records
from utils.figures.of_runs import one_seed, severity_figures
from utils.report.album import Album
from utils.report.facts import Runs
from utils.report.viewer import read_maps, viewed
from utils.run.folder import RunFolder
from utils.tables import layouts, study
from utils.tables.runs import RunInfo
from utils.text import MISSING, printable

log = logging.getLogger(__name__)

DRAWN_BEFORE = ("spectra", "patches")          # figures of a run that need its networks: shown where they lie
CURVES, MAPS, OTHER = "Curves", "Maps and scenes", "Single runs"


def maps(runs: Runs, rule: str, gpu: int | None, data_path: str | None, album: Album) -> list[dict[str, Any]]:
    """The viewer's maps of every pair, and their pictures."""
    viewers = []
    groups = list(one_seed(runs.shown[~runs.shown["pair"].str.endswith(f"→ {MISSING}")]))
    for pair, chosen in tqdm(groups, desc="maps", unit="pair", disable=not sys.stderr.isatty()):
        trained, maps = read_maps(chosen, rule, gpu, data_path, runs.left_out)
        if trained is None:
            continue
        target, names = trained.data.target, [printable(name) for name in trained.class_names]
        said = f"{pair}: maps of the whole target; seed {chosen['seed'].iloc[0]}, rule {rule}"
        shown = viewed(pair, said, target, names, maps)
        if album.takes(len(json.dumps(shown))):
            viewers.append(shown)
        else:
            runs.left_out.append(f"The maps of {pair} in the viewer: no room in the file (--size_limit).")
        captions = {_caption(row): maps[row["name"]] for row in chosen.to_dict("records") if row["name"] in maps}
        album.add(MAPS, said, lambda: plot_map_gallery(target.cube, target.rgb_bands, target.labels, captions, names,
                                                       f"{said}, scores in percent"))
        album.add(MAPS, f"{pair}: both scenes", lambda: scenes.plot_pair(trained.data.source, target, pair))
    return viewers


def _caption(row: dict[str, Any]) -> str:
    scored_on = pd.notna(row.get("kappa"))
    return f"{row['name']}: AA {100 * row['aa']:.1f}, κ {100 * row['kappa']:.1f}" if scored_on else row["name"]


def figures(runs: Runs, folders: list[str], rule: str, album: Album) -> None:
    """Scores and curves of all runs, then figures of one run of each method."""
    if len(runs.scores) and len(of_rule := runs.scores[runs.scores["rule"] == rule]):
        said = f"κ of every seed on the target, rule {rule}"
        album.add(CURVES, said, lambda: plot_seeds(of_rule, said))
        for make in (lambda: severity_figures(of_rule, rule), lambda: _ranks(of_rule, rule)):
            _add(album, made(make))
    _add(album, made(lambda: study_figures.draw(study.read(folders))))
    of_folder = {info.folder: info for info, _ in runs.every}
    chosen = [row for _, part in one_seed(runs.shown) for row in part.to_dict("records")]
    for row in tqdm(chosen, desc="figures", unit="run", disable=not sys.stderr.isatty()):
        _of_run(of_folder[row["folder"]], f"{row['pair']}: {row['name']}, seed {row['seed']}", rule, album)


def _add(album: Album, figures: dict[str, Figure]) -> None:
    """Figures under their own titles."""
    for figure in figures.values():
        album.add(CURVES, " ".join(figure.get_suptitle().replace(r"\$", "$").split()), lambda figure=figure: figure)


def _of_run(info: RunInfo, title: str, rule: str, album: Album) -> None:
    """Losses and confusion matrix from a run's records, and what `main.py figures` drew of it before."""
    run = RunFolder(info.folder)
    epochs = made(lambda: {"losses": epoch_records(run)})
    if epochs:
        album.add(OTHER, f"{title}: losses and scores", lambda: curves.plot_losses(epochs["losses"], title))
    entry = made(lambda: run.evaluation_of(rule))
    if "confusion" in entry:
        names = [printable(name) for name in info.classes]
        album.add(OTHER, f"{title}: confusion matrix, rule {rule}",
                  lambda: scenes.plot_confusion(np.array(entry["confusion"]), names, f"{title}, rule {rule}"))
    for name in DRAWN_BEFORE:
        path = run.figures / f"{name}.png"
        if path.is_file() and not path.is_symlink():
            album.add(OTHER, f"{title}: {name}", path.read_bytes)


def _ranks(runs: pd.DataFrame, rule: str) -> dict[str, Any]:
    table, ranks = layouts.mean_ranks(runs, rule)
    return {table.title: plot_ranks(ranks, table.title)}


def made(make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What is made, or nothing where the runs hold nothing for it."""
    try:
        return make()
    except UserError as error:
        log.debug("%s", error)
        return {}
