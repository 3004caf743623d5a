"""Tables from records only: mean ± std over seeds, n, and the selection rule in every heading."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from utils.errors import UserError
from utils.records import RunFolder, write_text

SCORES = {"oa": "OA", "aa": "AA", "kappa": "κ", "macro_f1": "F1"}
MISSING = "–"


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
    return row | {SCORES[key]: f"{100 * entry['target'][key]:.1f}" for key in SCORES if "target" in entry}


def _per_class(content: dict[str, Any], classes: list[str]) -> pd.DataFrame:
    entry = content["rules"]["last"]
    counts = [sum(row) for row in entry["confusion"]]
    accuracy = [MISSING if a is None else f"{100 * a:.1f}" for a in entry["target"]["per_class"]]
    return pd.DataFrame({"accuracy": accuracy, "pixels": counts}, index=classes, dtype=str)


def collect(folders: list[str | Path]) -> pd.DataFrame:
    """One row per finished run and selection rule, from all run folders below `folders`.

    Columns: pair, method, seed, rule, epoch, source_val (OA), oa, aa, kappa, macro_f1, and the constant answer's
    scores as constant_*; all scores as fractions.
    """
    rows = []
    for folder in folders:
        for path in sorted(Path(folder).rglob("evaluation.json")):
            rows += _run_rows(RunFolder(path.parent))
    if not rows:
        raise UserError(f"No finished run below {', '.join(map(str, folders))}.")
    return pd.DataFrame(rows).sort_values(["pair", "method", "seed"], kind="stable", ignore_index=True)


def _run_rows(run: RunFolder) -> list[dict[str, Any]]:
    content, about = json.loads(run.evaluation.read_text()), run.read_run()
    entries = content["rules"] | ({"oracle": content["oracle"]} if "oracle" in content else {})
    return [{"pair": f"{about['source']} → {about['target']}", "method": about["label"], "seed": about["seed"],
             "rule": rule, "epoch": entry["epoch"], "source_val": entry["source_val"]["oa"],
             **{key: entry["target"][key] for key in SCORES},
             **{f"constant_{key}": content["constant"][key] for key in SCORES}}
            for rule, entry in entries.items() if "target" in entry]


def pair_tables(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Title -> table: per pair one with the rules `last` and `source-val` side by side and the constant answer below,
    and, where it was asked for, one of its own for `oracle`."""
    tables = {}
    for pair, of_pair in runs.groupby("pair", sort=False):
        honest = of_pair[of_pair["rule"] != "oracle"]
        tables[f"{pair} (percent, mean ± std over n seeds)"] = _with_constant(_summary(honest), of_pair)
        oracle = of_pair[of_pair["rule"] == "oracle"]
        if len(oracle):
            tables[f"{pair}, epoch selected on the target's labels (oracle; not an honest score)"] = _summary(oracle)
    return tables


def gradient_table(folders: list[str | Path]) -> pd.DataFrame:
    """Norms of the gradients that the MI and the consistency term give the generators, and the generated domains'
    distance from the source, at the start and at the end of training: geometric means over runs, per method."""
    rows = []
    for folder in folders:
        for path in sorted(Path(folder).rglob("diagnostics.jsonl")):
            run = RunFolder(path.parent)
            first, last = (lambda records: (records[0], records[-1]))(run.records(path))
            rows += [{"method": run.read_run()["label"], "when": when, "seed": run.read_run()["seed"], **record}
                     for when, record in (("start", first), ("end", last))]
    if not rows:
        raise UserError(f"No run with diagnostics below {', '.join(map(str, folders))}.")
    table = {}
    for (method, when), runs in pd.DataFrame(rows).groupby(["method", "when"], sort=False):
        mean = runs.drop(columns=["method", "when", "seed", "epoch"]).apply(lambda v: np.exp(np.log(v.abs()).mean()))
        mi, consistency = mean.get("gradient_mi", np.nan), mean.get("gradient_consistency_max", np.nan)
        table[f"{method}, {when}"] = {
            "n": str(runs["seed"].nunique()), "‖∇MI‖": f"{mi:.1e}", "‖∇C‖": f"{consistency:.1e}",
            "ratio": f"{mi / consistency:.1e}", "rms x̂ / rms x (a, b)": _two(mean, "rms_ratio", "{:.2f}"),
            "|cos(x̂, x)| (a, b)": _two(mean, "cosine", "{:.2f}")}
    return pd.DataFrame.from_dict(table, orient="index").replace({"nan": MISSING})


def _two(values: pd.Series, name: str, form: str) -> str:
    return ", ".join(form.format(values[key]) for key in (f"{name}_a", f"{name}_b") if key in values)


def _summary(runs: pd.DataFrame) -> pd.DataFrame:
    table = {}
    for method, of_method in runs.groupby("method", sort=False):
        row = {"n": str(of_method["seed"].nunique())}
        for rule, entries in of_method.groupby("rule", sort=False):
            row[f"{rule}: source-validation OA"] = mean_std(entries["source_val"])
            row |= {f"{rule}: {SCORES[key]}": mean_std(entries[key]) for key in SCORES}
        table[method] = row
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
