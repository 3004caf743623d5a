"""What training does, over many runs: records -> one frame of points, and tables of scores, selection and norms."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from model.errors import UserError
from utils.run.folder import RunFolder
from utils.run.metrics import SCORES, constant_answer, scores
from utils.tables.cells import notes_of_names
from utils.tables.runs import named, read_runs
from utils.text import MISSING, insert_table, markdown, mean_std, shown

log = logging.getLogger(__name__)

VARIANCE_RATIO = "variance_ratio_"      # + layer: variance of clean patches over BatchNorm's running one
FEWEST = 4                              # pairs of values below which a rank correlation says nothing
NO_TARGET, UNLABELLED = "no target", "unlabelled target"


@dataclass(frozen=True)
class Criterion:
    """A score that can choose among runs and epochs without target labels (higher = better).

    column: its column in the points.  uses: what it reads of the target.
    """

    name: str
    column: str
    uses: str


LAST_EPOCH = Criterion("last", "step", NO_TARGET)
CRITERIA = (Criterion("source-val", "source_val_oa", NO_TARGET),
            Criterion("shifted-source", "shifted_source_oa", NO_TARGET),
            Criterion("entropy", "entropy", UNLABELLED), Criterion("IM", "im", UNLABELLED),
            Criterion("SND", "snd", UNLABELLED))
_OF_THE_RUN = ("pair", "seed", "folder", "finished", "uses_target", "adapts", "ceiling", "name")
_ALWAYS = ("seconds", *(criterion.column for criterion in CRITERIA),
           *(f"{section}_{score}" for section in ("target", "constant") for score in SCORES))


def read(folders: Iterable[str | Path]) -> pd.DataFrame:
    """One row per run and recorded epoch, from all run folders at or below `folders` (see `read_runs`).

    Columns: pair, seed, folder, finished, uses_target, adapts, ceiling, name; epoch (0 = before training); step; and
    what the records hold, NaN where they lack it: seconds (of the epoch), SECTION_SCORE as fractions (source_val_oa,
    shifted_source_oa, target_kappa, ...; constant_* = the constant answer), validators and diagnostics under their own
    names.  A run without a finished epoch is left out with a warning.  Raises UserError if no run is left.
    """
    every = read_runs(folders, lambda run, _: _epochs(run))
    for info, epochs in every:
        if not epochs:
            log.warning("%s is left out: it has no finished epoch yet.", info.folder)
    found = [(info, epochs) for info, epochs in every if epochs]
    if not found:
        raise UserError(f"No run with a finished epoch below {', '.join(map(str, folders))}. Give run folders, or the "
                        "folder of a sweep (configs/sweep).")
    of_folder = {info.folder: epochs for info, epochs in found}
    runs = named(pd.DataFrame([info.columns for info, _ in found]))[list(_OF_THE_RUN)]
    points = pd.DataFrame([run | epoch for run in runs.to_dict("records") for epoch in of_folder[run["folder"]]])
    points = points.reindex(columns=[*points, *(column for column in _ALWAYS if column not in points)])
    return points.sort_values(["pair", "ceiling", "name", "seed", "epoch"], kind="stable", ignore_index=True)


def _epochs(run: RunFolder) -> list[dict[str, Any]]:
    """A row per epoch that all records tell of, in order; empty where no epoch is finished."""
    trained = run.records(run.epochs, "steps")
    rows = {record["epoch"]: {"epoch": record["epoch"]} for record in [{"epoch": 0}, *trained]}
    oracle = run.records(run.oracle)
    for record in [*trained, *oracle, *run.records(run.validators), *run.records(run.diagnostics)]:
        if record["epoch"] in rows:                 # an epoch is finished when its own record is written
            rows[record["epoch"]] |= _numbers(record)
    if not trained:
        return []
    constant = {}
    if oracle:
        answer = scores(constant_answer(np.sum(oracle[0]["confusion"], axis=1)))
        constant = {f"constant_{score}": getattr(answer, score) for score in SCORES}
    steps = trained[-1]["steps"]
    return [row | constant | {"step": steps * row["epoch"]} for _, row in sorted(rows.items())]


def _numbers(record: dict[str, Any]) -> dict[str, float]:
    """The numbers of a record, those of a section of scores as SECTION_SCORE; losses, matrices and words left out."""
    flat = {f"{key}_{score}": part[score] for key, part in record.items() if isinstance(part, dict)
            for score in SCORES if score in part}
    return flat | {key: value for key, value in record.items() if isinstance(value, (int, float)) and key != "steps"}


def _unused(points: pd.DataFrame) -> list[str]:
    """The columns of marks that no run has, which older programs did not write."""
    return [name for name in ("adapts", "ceiling") if not points[name].any()]


def last_epochs(points: pd.DataFrame) -> pd.DataFrame:
    """Every run at its last epoch, a row each; seconds are those of the whole training.

    second_half_kappa: the mean of κ over the evaluations in the second half of the epochs, which tells more of a run
    whose score swings than its last value does.
    """
    last = points.loc[points.groupby("folder", sort=False)["epoch"].idxmax()].copy()
    second_half = points[points["epoch"] > points.groupby("folder")["epoch"].transform("max") / 2]
    last["second_half_kappa"] = last["folder"].map(second_half.groupby("folder")["target_kappa"].mean())
    last["seconds"] = last["folder"].map(points.groupby("folder")["seconds"].sum())
    return last.reset_index(drop=True)


def score_tables(points: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Title -> table per pair: a row per method with its scores at the last step, the mean κ over the second half of
    its evaluations, and the constant answer below."""
    columns = {"source-val OA": "source_val_oa", "shifted-source OA": "shifted_source_oa", "target OA": "target_oa",
               "target AA": "target_aa", "target κ": "target_kappa", "κ, second half": "second_half_kappa"}
    tables = {}
    for pair, of_pair in last_epochs(points).groupby("pair", sort=False):
        rows = {}
        for name, runs in of_pair.groupby("name", sort=False):
            n, open_runs = len(runs), (~runs["finished"]).sum()
            rows[name] = {"n": f"{n} ({open_runs} unfinished)" if open_runs else str(n), "steps": _range(runs["step"]),
                          **{title: _percent(runs[column], n) for title, column in columns.items()},
                          "seconds": f"{runs['seconds'].mean():,.0f}"}
        whole = of_pair if of_pair["ceiling"].all() else of_pair[~of_pair["ceiling"]]     # all labelled target pixels
        constant = whole[[f"constant_{score}" for score in SCORES]].max()
        if constant.notna().any():
            rows["constant answer"] = {title: f"{100 * constant[column.replace('target', 'constant')]:.1f}"
                                       for title, column in columns.items() if title.startswith("target")}
        tables[f"{pair} (percent, mean ± std over n seeds, rule last)"] = \
            pd.DataFrame.from_dict(rows, orient="index").fillna(MISSING)
    return tables


def selection(points: pd.DataFrame) -> pd.DataFrame:
    """How well each score stands in for the target's labels: a row per pair and criterion.

    Columns: pair, score, uses; n (runs with score and target at the last epoch); rho_kappa, rho_oa (Spearman over
    these runs); rho_epochs (Spearman with κ over a run's epochs, mean over the n_epochs runs that have one); regret
    (mean over runs: κ of the best epoch - κ of the epoch that the score selects, as fraction).  The row `last`, where
    the score is the step, has no ρ over runs.  Ceilings, whose source is the target, take no part.
    """
    rows, points = [], points[~points["ceiling"]]
    for pair, of_pair in points.groupby("pair", sort=False):
        last = last_epochs(of_pair)
        for criterion in (LAST_EPOCH, *CRITERIA):
            known = last[last[criterion.column].notna() & last["target_kappa"].notna()]
            if known.empty:
                continue
            over_runs = {f"rho_{score}": np.nan if criterion is LAST_EPOCH else
                         rank_correlation(known[criterion.column].to_numpy(), known[f"target_{score}"].to_numpy())
                         for score in ("kappa", "oa")}
            runs = [run.to_numpy(float) for _, run in of_pair.groupby("folder")[[criterion.column, "target_kappa",
                                                                                "epoch"]]]            # [epochs, 3] each
            within = pd.Series([rank_correlation(run[:, 0], run[:, 1]) for run in runs])
            rows.append({"pair": pair, "score": criterion.name, "uses": criterion.uses, "n": len(known), **over_runs,
                         "rho_epochs": within.mean(), "n_epochs": within.notna().sum(),
                         "regret": pd.Series([regret(*run.T) for run in runs]).mean()})
    return pd.DataFrame(rows)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's ρ over the places where both are known; NaN where these are fewer than 4, or one is constant."""
    both = ~(np.isnan(a) | np.isnan(b))
    a, b = a[both], b[both]
    if len(a) < FEWEST or (a == a[0]).all() or (b == b[0]).all():
        return np.nan
    return float(np.corrcoef(rankdata(a), rankdata(b))[1, 0])


def regret(score: np.ndarray, kappa: np.ndarray, epoch: np.ndarray) -> float:
    """κ of a run's best epoch - κ of the epoch with the highest score, among equals the latest; NaN without either.

    score, kappa, epoch [epochs] of the run.
    """
    both = ~(np.isnan(score) | np.isnan(kappa))
    if not both.any():
        return np.nan
    chosen = np.lexsort((epoch[both], score[both]))[-1]
    return float(np.nanmax(kappa) - kappa[both][chosen])


def selection_tables(found: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Title -> the rows of `selection` on one pair, as text."""
    tables = {}
    for pair, rows in found.groupby("pair", sort=False) if len(found) else ():
        tables[f"{pair} (Spearman ρ with the target's scores; regret in points of κ)"] = pd.DataFrame.from_dict(
            {row.score: {"uses": f"uses {UNLABELLED}" if row.uses == UNLABELLED else row.uses, "n runs": str(row.n),
                         "ρ over runs, κ": _rho(row.rho_kappa), "ρ over runs, OA": _rho(row.rho_oa),
                         "ρ over epochs, κ": _rho(row.rho_epochs, row.n_epochs, row.n),
                         "regret, κ": f"{100 * row.regret:.1f}"} for row in rows.itertuples()}, orient="index")
    return tables


def norm_ratios(points: pd.DataFrame) -> pd.DataFrame:
    """Variance of clean source patches over BatchNorm's running variance at the end of each run: geometric means over
    runs, indexed by pair and name, a column per norm layer in the network's order; rows without any are left out."""
    layers = [column for column in points if column.startswith(VARIANCE_RATIO)]
    ends = points.groupby(["pair", "name", "folder"], sort=False)[layers].last()        # the last that is known
    ratios = np.exp(np.log(ends.where(ends > 0)).groupby(level=["pair", "name"], sort=False).mean())
    return ratios.rename(columns=_layer).dropna(how="all")


def _layer(column: str) -> str:
    """variance_ratio_stages.0.spectral.involution.conv1.bn -> stage 0 spectral involution."""
    name = column.removeprefix(VARIANCE_RATIO).removesuffix("_norm").removesuffix(".conv1.bn")
    return name.replace("stages.", "stage ").replace(".", " ")


def norm_tables(found: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Title -> the rows of `norm_ratios` on one pair, as text."""
    return {f"{pair} (variance of clean source patches / running variance at the end, geometric mean; 1 = it fits)":
            ratios.droplevel("pair").map(lambda value: MISSING if np.isnan(value) else f"{value:.3g}")
            for pair, ratios in found.groupby(level="pair", sort=False)}


def make_tables(points: pd.DataFrame) -> dict[str, tuple[str, pd.DataFrame]]:
    """Name -> Markdown and the numbers behind it; a table that the records have nothing for is left out."""
    found, ratios = selection(points), norm_ratios(points)
    made = {"scores": (score_tables(points), "method", last_epochs(points).drop(columns=["folder", *_unused(points)])),
            "selection": (selection_tables(found), "score", found),
            "norms": (norm_tables(ratios), "method", ratios.reset_index())}
    return {name: (_text(tables, index), numbers) for name, (tables, index, numbers) in made.items() if tables}


def _text(tables: dict[str, pd.DataFrame], index: str) -> str:
    parts = [f"**{shown(title)}**\n\n{markdown(table, index)}" for title, table in tables.items()]
    return "\n\n".join(parts + notes_of_names(str(row) for table in tables.values() for row in table.index))


def insert_tables(path: Path, folder: str, texts: dict[str, str]) -> None:
    """Put tables (name -> text) between the marks FOLDER/NAME that a file has; UserError where it has none of them."""
    content = path.read_text()
    marked = [name for name in texts if f"<!-- {folder}/{name} -->" in content]
    for name in marked or texts:
        insert_table(path, f"{folder}/{name}", texts[name])


def _percent(values: pd.Series, n: int) -> str:
    """Mean ± std in percent; with its own n where that is smaller than the row's."""
    known = values.dropna()
    return MISSING if known.empty else mean_std(known) + (f" (n={len(known)})" if len(known) < n else "")


def _range(values: pd.Series) -> str:
    low, high = int(values.min()), int(values.max())
    return f"{high:,}" if low == high else f"{low:,}–{high:,}"


def _rho(value: float, n: int = 0, of: int = 0) -> str:
    return MISSING if np.isnan(value) else f"{value:.2f}" + (f" (n={n})" if n < of else "")
