"""The text files that the released code leaves in the folder of a run, beside best.pth: settings.txt and train_log.txt."""

from __future__ import annotations

from typing import Any

import numpy as np

from utils.run.config import TrainConfig, to_dict


def settings_text(config: TrainConfig) -> str:
    """settings.txt: one flag and its value a line, between tabs; a nested one under its dotted name."""
    values: dict[str, Any] = {}
    for name, value in to_dict(config).items():
        values |= {f"{name}.{part}": own for part, own in value.items()} if isinstance(value, dict) else {name: value}
    values["nce_layers"] = ",".join(map(str, config.contrast_layers))       # as that code calls them
    return "".join(f"\t{name}\t{value}\n" for name, value in values.items())


def train_log_text(entry: dict[str, Any], done: bool) -> str:
    """train_log.txt: the chosen epoch and its scores on the target, one quantity a line.

    entry: epoch, scores ("target") and confusion matrix of a selection rule.  OA and the accuracies per class (TPR) are
    in percent, κ and F1 fractions; those of a class without truth are nan.  done: whether the run has finished.
    """
    confusion, target = np.array(entry["confusion"]), entry["target"]
    truth, predicted, right = confusion.sum(1), confusion.sum(0), confusion.diagonal()
    f1 = np.divide(2 * right, truth + predicted, out=np.full(len(right), np.nan), where=truth > 0)
    recall = np.array([np.nan if value is None else 100 * value for value in target["per_class"]])
    oa = f"{100 * target['oa']:.2f}"
    lines = {"best_epoch": entry["epoch"], "best_acc": oa, "Confusion_matrix": confusion, "OA": oa,
             "TPR": recall.round(2), "F1scores": f1, "kappa": f"{target['kappa']:.4f}", "finished": done}
    return "".join(f"{name}: {value}\n" for name, value in lines.items())
