"""Tables from records only: mean ± std over seeds, n, and the selection rule in every heading."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from utils.config import WITHOUT_EFFECT, with_defaults
from utils.errors import UserError
from utils.records import RunFolder, find_runs, write_text

log = logging.getLogger(__name__)

SCORES = {"oa": "OA", "aa": "AA", "kappa": "κ", "macro_f1": "F1"}
MISSING = "–"
NO_SETTING = WITHOUT_EFFECT | {"seed", "source_name", "target_name", "oracle"}


def run_table(run: RunFolder) -> str:
    """The result of one run as text."""
    content, about = json.loads(run.evaluation.read_text()), run.read_run()
    rows = {rule: _row(entry) for rule, entry in content["rules"].items()}
    if "constant" in content:
        rows["constant answer"] = {SCORES[key]: f"{100 * content['constant'][key]:.1f}" for key in SCORES}
    title = f"{about['label']}: {about['source']} → {about['target'] or MISSING}, seed {about['seed']} (percent; n=1)"
    text = f"\n{title}\n\n{markdown(pd.DataFrame.from_dict(rows, orient='index'), 'selection rule')}\n"
    if "oracle" in content:
        best = pd.DataFrame.from_dict({"oracle": _row(content["oracle"])}, orient="index")
        text += f"\nSelected on the target's labels (oracle; not an honest score)\n\n{markdown(best, 'selection rule')}\n"
    if "target" in content["rules"]["last"]:
        text += f"\nAccuracy per class, rule last\n\n{markdown(_per_class(content, about['classes']), 'class')}\n"
    return text + f"\nRun folder: {run.path}"


def _row(entry: dict[str, Any]) -> dict[str, str]:
    row = {"epoch": str(entry["epoch"]), "source-validation OA": f"{100 * entry['source_val']['oa']:.1f}"}
    if "shifted_source" in entry:
        row["shifted-source OA"] = f"{100 * entry['shifted_source']['oa']:.1f}"
    return row | {SCORES[key]: f"{100 * entry['target'][key]:.1f}" for key in SCORES if "target" in entry}


def _per_class(content: dict[str, Any], classes: list[str]) -> pd.DataFrame:
    entry = content["rules"]["last"]
    counts = [sum(row) for row in entry["confusion"]]
    accuracy = [MISSING if a is None else f"{100 * a:.1f}" for a in entry["target"]["per_class"]]
    return pd.DataFrame({"accuracy": accuracy, "pixels": counts}, index=classes, dtype=str)


def collect(folders: list[str | Path]) -> pd.DataFrame:
    """One row per finished run and selection rule, from all run folders below `folders`.

    Columns: pair, method (label), setting (all other settings that can change a result and a digest of the data, as
    JSON), seed, planned (runs of this setting, unfinished ones included), rule, epoch, source_val and shifted_source
    (OA; missing in runs older than the rule), oa, aa, kappa, macro_f1, the constant answer's scores as constant_*,
    folder; scores as fractions.  A folder that cannot be read, an unfinished run and a repetition of the same setting
    and seed are left out with a word.  Raises UserError where nothing is left.
    """
    found: dict[tuple, _Found] = {}
    for run in find_runs(folders):
        try:
            new = _run_rows(run)
        except (json.JSONDecodeError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s is left out: its records are damaged (%s: %s).", run.path, type(error).__name__, error)
            continue
        old = found.get(new.key)
        if old and old.rows and new.rows:
            log.warning("%s is left out: it repeats the setting and seed of another run.",
                        run.path if len(old.rows) >= len(new.rows) else old.rows[0]["folder"])
        if old is None or len(new.rows) > len(old.rows):      # finished before unfinished, with oracle before without
            found[new.key] = new
    rows = [row for run in found.values() for row in run.rows]
    if not rows:
        raise UserError(f"No finished run with a labelled target below {', '.join(map(str, folders))}.")
    planned = Counter(key[:-1] for key in found)
    table = pd.DataFrame(rows)
    table["planned"] = [planned[key] for key in zip(table["pair"], table["method"], table["setting"])]
    return table.sort_values(["pair", "method", "setting", "seed"], kind="stable", ignore_index=True)


@dataclass(frozen=True)
class _Found:
    """What one run folder says: its place in a table, and a row per selection rule (none where it is unfinished)."""

    pair: str
    method: str
    setting: str
    seed: int
    rows: list[dict[str, Any]]

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.pair, self.method, self.setting, self.seed


def _run_rows(run: RunFolder) -> _Found:
    about, config = run.read_run(), with_defaults(yaml.safe_load(run.config.read_text()))
    settings = {name: value for name, value in config.items() if name not in NO_SETTING and value is not None}
    data = hashlib.sha256(json.dumps(about["sha256"], sort_keys=True).encode()).hexdigest()[:8]
    setting = json.dumps(settings | {"data": data}, sort_keys=True)
    place = {"pair": f"{about['source']} → {about['target']}", "method": about["label"], "setting": setting,
             "seed": about["seed"]}
    if about["status"] != "done":
        return _Found(**place, rows=[])
    content = json.loads(run.evaluation.read_text())
    entries = content["rules"] | ({"oracle": content["oracle"]} if "oracle" in content else {})
    rows = [{**place, "rule": rule, "epoch": entry["epoch"], "source_val": entry["source_val"]["oa"],
             "shifted_source": entry.get("shifted_source", {}).get("oa"),
             **{key: entry["target"][key] for key in SCORES},
             **{f"constant_{key}": content["constant"][key] for key in SCORES}, "folder": str(run.path)}
            for rule, entry in entries.items() if "target" in entry]
    return _Found(**place, rows=rows)


def named_settings(runs: pd.DataFrame) -> pd.Series:
    """How each run is called in a table: its label, and behind it the settings in which runs of one label differ."""
    names = pd.Series(runs["method"], copy=True)
    for _, of_label in runs.groupby(["pair", "method"]):
        settings = {text: json.loads(text) for text in of_label["setting"].unique()}
        differing = sorted({name for one in settings.values() for other in settings.values()
                            for name in one.keys() | other.keys() if one.get(name) != other.get(name)})
        for index, text in of_label["setting"].items():
            names[index] += "".join(f" {name}={settings[text].get(name)}" for name in differing)
    return names


def pair_tables(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Title -> table: per pair one with all honest rules side by side and the constant answer below, and,
    where it was asked for, one of its own for `oracle`."""
    tables = {}
    runs = runs.assign(name=named_settings(runs))
    for pair, of_pair in runs.groupby("pair", sort=False):
        honest = of_pair[of_pair["rule"] != "oracle"]
        tables[f"{pair} (percent, mean ± std over n seeds)"] = _with_constant(_summary(honest), of_pair)
        oracle = of_pair[of_pair["rule"] == "oracle"]
        if len(oracle):
            tables[f"{pair}, epoch selected on the target's labels (oracle; not an honest score)"] = _summary(oracle)
    return tables


def gradient_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Norms of the gradients that the MI and the consistency term give the generators (geometric means over runs), and
    the generated domains' distance from the source (means), at the start and at the end of training."""
    rows = []
    runs = runs.assign(name=named_settings(runs))
    several = runs["pair"].nunique() > 1
    for (pair, name, folder), _ in runs.groupby(["pair", "name", "folder"], sort=False):
        run, name = RunFolder(folder), f"{pair}, {name}" if several else name
        records = [record for record in run.records(run.diagnostics)
                   if any(name.startswith("gradient") for name in record)]
        if records:
            rows += [{"name": name, "when": when, **record} for when, record in (("start", records[0]),
                                                                                ("end", records[-1]))]
    if not rows:
        raise UserError("None of these runs has diagnostics (only S²AMSnet records them).")
    table = {}
    for (name, when), of_name in pd.DataFrame(rows).groupby(["name", "when"], sort=False):
        mean = of_name.drop(columns=["name", "when", "epoch"]).mean()
        mi, consistency = (np.exp(np.log(of_name[key]).mean()) if key in of_name else np.nan
                           for key in ("gradient_mi", "gradient_consistency_max"))
        table[f"{name}, {when}"] = {
            "n": str(len(of_name)), "‖∇MI‖": f"{mi:.1e}", "‖∇C‖": f"{consistency:.1e}",
            "ratio": f"{mi / consistency:.1e}", "rms x̂ / rms x (a, b)": _two(mean, "rms_ratio", "{:.2f}"),
            "cos(x̂, x) (a, b)": _two(mean, "cosine", "{:.2f}")}
    return pd.DataFrame.from_dict(table, orient="index").replace({"nan": MISSING})


def _two(values: pd.Series, name: str, form: str) -> str:
    return ", ".join(form.format(values[key]) for key in (f"{name}_a", f"{name}_b") if key in values)


def _summary(runs: pd.DataFrame) -> pd.DataFrame:
    """A row per setting; n is n/planned where runs are unfinished (an oracle is scored only in runs that ask for it).
    A rule that not all of the runs know, some being older than it, says how many do."""
    table = {}
    for name, of_name in runs.groupby("name", sort=False):
        n, planned = of_name["folder"].nunique(), of_name["planned"].iloc[0]
        row = {"n": str(n) if n == planned or list(of_name["rule"].unique()) == ["oracle"] else f"{n}/{planned}"}
        for rule, entries in of_name.groupby("rule", sort=False):
            few = f" (n={len(entries)})" if len(entries) < n else ""
            row[f"{rule}: source-validation OA"] = mean_std(entries["source_val"]) + few
            row |= {f"{rule}: {SCORES[key]}": mean_std(entries[key]) + few for key in SCORES}
        table[name] = row
    return pd.DataFrame.from_dict(table, orient="index").fillna(MISSING)


def _with_constant(table: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    row = {column: f"{100 * runs[f'constant_{key}'].iloc[0]:.1f}" for column in table.columns
           for key, name in SCORES.items() if column.endswith(f": {name}")}
    table.loc["constant answer"] = [row.get(column, MISSING) for column in table.columns]
    return table


def mean_std(values: pd.Series) -> str:
    """Percent, mean ± sample standard deviation (ddof 1); a single value stands alone."""
    mean = f"{100 * values.mean():.1f}"
    return mean if len(values) < 2 else f"{mean} ± {100 * values.std(ddof=1):.1f}"


def markdown(table: pd.DataFrame, index: str) -> str:
    """A table of strings as Markdown, columns padded so that the text also reads well in a terminal."""
    rows = [[index, *table.columns]] + [[str(name), *map(str, row)] for name, row in zip(table.index, table.values)]
    rows = [[MISSING if cell == "nan" else cell for cell in row] for row in rows]
    width = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, width)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in width) + "|")
    return "\n".join(lines)


def insert(path: Path, name: str, text: str) -> None:
    """Replace what stands between <!-- NAME --> and <!-- /NAME --> in a file.  Raises UserError where they are missing."""
    content = path.read_text()
    before, begin, rest = content.partition(f"<!-- {name} -->")
    _, end, after = rest.partition(f"<!-- /{name} -->")
    if not (begin and end):
        raise UserError(f"{path} has no part between <!-- {name} --> and <!-- /{name} --> to put the table into.")
    write_text(path, f"{before}{begin}\n{text}\n{end}{after}")
