"""The result of one run as text."""

from __future__ import annotations

import logging
from typing import Any

import pandas as pd

from datasets.correction import NONE
from utils.run.folder import RunFolder
from utils.run.metrics import SCORES
from utils.run.records import BEGUN
from utils.text import MISSING, markdown, shown

log = logging.getLogger(__name__)


def run_table(run: RunFolder) -> str:
    """The result of one run as text."""
    content, about = run.read_evaluation(), run.read_run(*BEGUN, "label", "seed", "classes")
    rows = {rule: _row(entry) for rule, entry in content["rules"].items()}
    if "constant" in content:
        rows["constant answer"] = {SCORES[key]: f"{100 * content['constant'][key]:.1f}" for key in SCORES}
    sees = ", unlabelled target seen" if about["uses_target"] else ""
    sees += ", target scene's statistics used" if run.read_config().scene_correction != NONE else ""
    pair = f"{about['source']} → {about['target'] or MISSING}"
    title = f"{about['label']}: {pair}, seed {about['seed']}{sees} (percent; n=1)"
    text = f"\n{shown(title)}\n\n{markdown(pd.DataFrame.from_dict(rows, orient='index'), 'selection rule')}\n"
    if "oracle" in content:
        best = pd.DataFrame.from_dict({"oracle": _row(content["oracle"])}, orient="index")
        text += f"\nSelected on the target's labels (oracle; not an honest score)\n\n{markdown(best, 'selection rule')}\n"
    if "target" in content["rules"]["last"]:
        text += f"\nAccuracy per class, rule last\n\n{markdown(_per_class(content, about['classes']), 'class')}\n"
    return text + f"\nRun folder: {run.path}"


def _row(entry: dict[str, Any]) -> dict[str, str]:
    row = {"epoch": str(entry["epoch"])} | {
        name: f"{100 * entry[score]['oa']:.1f}" if score in entry else MISSING
        for name, score in (("source-validation OA", "source_val"), ("shifted-source OA", "shifted_source"))}
    return row | {SCORES[key]: f"{100 * entry['target'][key]:.1f}" for key in SCORES if "target" in entry}


def _per_class(content: dict[str, Any], classes: list[str]) -> pd.DataFrame:
    entry = content["rules"]["last"]
    counts = [sum(row) for row in entry["confusion"]]
    accuracy = [MISSING if a is None else f"{100 * a:.1f}" for a in entry["target"]["per_class"]]
    return pd.DataFrame({"accuracy": accuracy, "pixels": counts}, index=classes, dtype=str)
