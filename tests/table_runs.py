"""Made-up run folders, for the tests of tables."""

from __future__ import annotations

import json

from utils.run.config import from_dict, to_yaml
from utils.run.folder import run_label
from utils.tables import collect, layouts


def write_settings(folder, label, **settings):
    """Write config.yaml of a new run folder, from METHOD or METHOD RECIPE and settings; return its label and seed."""
    method, _, recipe = label.partition(" ")
    config = from_dict({"method": method, "recipe": recipe or "released", "data_path": str(folder)} | settings)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(config))
    return {"label": run_label(config), "seed": config.seed}


def write_run(folder, label, seed, last, val, oracle=None, shifted=None, status="done", data="one", target="B",
              classes=(None, None), uses_target=False, **settings):
    """A run folder whose scores follow from the OA of each rule, `shifted-source` where it is given.  `classes`:
    accuracies of the two classes; None is, for the first one, the OA, and for the second one a class that the target
    lacks."""
    about = write_settings(folder, label, seed=seed, oracle=oracle is not None, **settings)

    def score(x):
        return {"oa": x, "aa": x - 0.1, "kappa": x - 0.2, "macro_f1": x - 0.3, "n": 10,
                "per_class": [x if classes[0] is None else classes[0], classes[1]]}

    def entry(x, epoch):
        return {"epoch": epoch, "source_val": {"oa": 0.99}, "shifted_source": {"oa": 0.8, "views": {}},
                "target": score(x), "confusion": [[1, 2], [0, 0]]}

    content = {"rules": {"last": entry(last, 9), "source-val": entry(val, 4)},
               "constant": score(0.5) | {"per_class": [0.5, classes[1]]}}
    if shifted is not None:
        content["rules"]["shifted-source"] = entry(shifted, 5)
    if oracle is not None:
        content["oracle"] = entry(oracle, 7)
    if status == "done":
        (folder / "evaluation.json").write_text(json.dumps(content))
    (folder / "run.json").write_text(json.dumps(about | {
        "source": "A", "target": target, "classes": ["x", "y"], "status": status, "sha256": {"a": data},
        "uses_target": uses_target}))
    (folder / "diagnostics.jsonl").write_text('{"epoch": 0, "gradient_mi": 2, "gradient_consistency_max": 1}\n')


def made(folder, layout="pairs", rule="last"):
    return layouts.make(layout, collect.collect([folder]), rule)


def texts(table):
    """Row -> column -> text."""
    return {row: {column: table.cell(row, column).text for column in table.columns} for row in table.rows}


def write_seeds(folder):
    """Seven seeds of three methods; one sees unlabelled target, and one of its runs is not finished."""
    for seed in range(7):
        noise = 0.01 * (seed % 3)
        write_run(folder / f"a{seed}", "erm", seed, 0.60 + noise, 0.5)
        write_run(folder / f"b{seed}", "svm", seed, 0.61 - 2 * noise, 0.5)
        write_run(folder / f"c{seed}", "daan", seed, 0.40 + noise, 0.55 - noise, oracle=0.7 + noise,
                  status="failed" if seed == 6 else "done", uses_target=True)
